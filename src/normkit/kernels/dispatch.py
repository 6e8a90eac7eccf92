"""Choose what computes a call, and say why: one loop over :data:`WAYS`."""

from __future__ import annotations

import torch

from normkit.core.formula import Spec
from normkit.kernels.aten import Portable
from normkit.kernels.call import Call, Normalized, Way
from normkit.kernels.compiled import Compiled
from normkit.kernels.fused import FusedCPU
from normkit.kernels.native import TorchNative
from normkit.kernels.traced import Traced
from normkit.kernels.triton.gpu import TritonGPU

__all__ = ["WAYS", "choose", "explain", "normalize", "usual_way"]

WAYS: tuple[Way, ...] = (
    Compiled(), Traced(), FusedCPU(), TritonGPU(), TorchNative(), Portable(),
)  # fmt: skip
"""In order of preference; the last one takes everything."""


def choose(call: Call) -> list[tuple[Way, str | None]]:
    """Return the ways considered for ``call`` with their refusals; the last one takes it."""
    considered: list[tuple[Way, str | None]] = []
    for way in WAYS:
        refusal = way.refuses(call)
        considered.append((way, refusal))
        if refusal is None:
            break
    return considered


def normalize(call: Call) -> Normalized:
    """Compute ``call`` by the first way that takes it."""
    way, _ = choose(call)[-1]
    return way.run(call)


def explain(call: Call) -> list[str]:
    """Return one line for each way considered, the one that :func:`normalize` takes last.

    >>> from normkit.core.pools import PER_POSITION
    >>> call = Call(torch.ones(4, 3, device="meta"), Spec(PER_POSITION, 1e-5))
    >>> for line in explain(call):
    ...     print(line)
    fused kernels in a compiled graph: not used because ...
    traced formula: not used because nothing traces or transforms this call
    fused C++ kernels: not used because ...
    Triton kernels: not used because they run on a GPU and the input is on meta
    PyTorch's kernels: not used because PyTorch has no kernel for pools over position
    portable operations: used
    """
    return [
        f"{way.name}: used" if refusal is None else f"{way.name}: not used because {refusal}"
        for way, refusal in choose(call)
    ]


def usual_way(device: torch.device, dtype: torch.dtype, spec: Spec, rank: int = 4) -> list[str]:
    """Explain ``spec`` on a small input, for a model whose input is not known yet.

    Args:
        rank: axes of the input, each of size two.

    >>> from normkit.core.pools import PER_CHANNEL
    >>> usual_way(torch.device("meta"), torch.float32, Spec(PER_CHANNEL, 1e-5))[-1]
    "PyTorch's kernels: used"
    """
    x = torch.zeros((2,) * rank, device=device, dtype=dtype)
    return explain(Call(x, spec))
