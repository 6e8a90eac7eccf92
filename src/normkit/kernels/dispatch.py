"""Picks the backend for an input, and can say why."""

from __future__ import annotations

from torch import Tensor

from normkit.core.formula import Spec
from normkit.kernels.aten import Aten
from normkit.kernels.contract import Backend
from normkit.kernels.native import Native

__all__ = ["PORTABLE", "choose", "explain_choice"]

PORTABLE: Backend = Aten()
# In order of preference; the last one takes everything.
_BACKENDS: tuple[Backend, ...] = (Native(), PORTABLE)


def choose(x: Tensor, spec: Spec) -> Backend:
    """The first backend that does not refuse ``x``."""
    for backend in _BACKENDS:
        if backend.refuses(x, spec) is None:
            return backend
    return PORTABLE


def explain_choice(x: Tensor, spec: Spec) -> list[str]:
    """One line per backend that was considered, the chosen one last.

    >>> import torch
    >>> from normkit.core.pools import PER_POSITION
    >>> for line in explain_choice(torch.ones(4, 3), Spec(PER_POSITION, 1e-5)):
    ...     print(line)
    native: not used because ATen has no kernel for pools over position
    aten: used
    """
    lines = []
    for backend in _BACKENDS:
        reason = backend.refuses(x, spec)
        if reason is None:
            lines.append(f"{backend.name}: used")
            break
        lines.append(f"{backend.name}: not used because {reason}")
    return lines
