"""Picks what computes a layer's output for an input, and can say why."""

from __future__ import annotations

from torch import Tensor

from normkit.core.formula import Spec
from normkit.kernels import fused, native
from normkit.kernels.aten import Aten
from normkit.kernels.contract import Backend

__all__ = ["PORTABLE", "choose", "explain_choice"]

PORTABLE: Backend = Aten()
# In order of preference; the last one takes everything.
_BACKENDS: tuple[Backend, ...] = (PORTABLE,)


def choose(x: Tensor, spec: Spec) -> Backend | None:
    """The backend for ``x``, or None where PyTorch's own kernels take it.

    Asked where :mod:`normkit.kernels.fused` did not take ``x``.
    """
    if native.refuses(x, spec) is None:
        return None
    for backend in _BACKENDS:
        if backend.refuses(x, spec) is None:
            return backend
    return PORTABLE


def explain_choice(x: Tensor, spec: Spec) -> list[str]:
    """One line for each way that was considered, the chosen one last.

    >>> import torch
    >>> from normkit.core.pools import PER_POSITION
    >>> for line in explain_choice(torch.ones(4, 3, device="meta"), Spec(PER_POSITION, 1e-5)):
    ...     print(line)
    fused: not used because ...
    native: not used because PyTorch has no kernel for pools over position
    aten: used
    """
    lines: list[str] = []
    ways = [("fused", fused.refuses), ("native", native.refuses)]
    for name, refuses in [*ways, *((b.name, b.refuses) for b in _BACKENDS)]:
        reason = refuses(x, spec)
        if reason is None:
            return [*lines, f"{name}: used"]
        lines.append(f"{name}: not used because {reason}")
    return lines
