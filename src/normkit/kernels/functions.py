"""Functions that ``torch.nn``'s layers call, for tools that look for them.

An exported or traced graph holds the same operations as with ``torch.nn``'s layers, so what
rewrites such graphs (from training to evaluation, for quantization, to ONNX) finds them; a tensor
subclass that overrides these functions is asked.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from normkit.core.activations import Act
from normkit.core.moments import accumulator
from normkit.core.pools import as_ncs, concrete
from normkit.kernels.call import Call, FixedStats, Normalized

__all__ = ["finish", "fits", "normalize", "over_last"]


def normalize(call: Call) -> Normalized | None:
    """Compute ``call`` by one function of PyTorch, or return None where none does it."""
    x, spec, stats = call.x, call.spec, call.stats
    if not spec.centred or spec.eps <= 0 or concrete(x.numel()) == 0:
        return None
    mean = var = None
    if spec.pool.over == "batch":
        batch = _batch_norm(call)
        if batch is None:
            return None
        z, mean, var = batch
    elif call.wants_moments or isinstance(stats, FixedStats) or not fits(x, call.weight, call.bias):
        return None
    elif spec.pool.over == "group":
        z = F.group_norm(x, spec.pool.groups, call.weight, call.bias, spec.eps)
    elif spec.pool.over == "position":
        z = F.layer_norm(x.movedim(1, -1), x.shape[1:2], call.weight, call.bias, spec.eps)
        z = z.movedim(-1, 1)
        z = z.contiguous() if x.is_contiguous() else z
    else:
        return None
    y = finish(z, call.residual, spec.act)
    return Normalized(y, mean, var, spec.pool.count(*as_ncs(x)))


def _batch_norm(call: Call) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """Return the output, and the moments where they were asked for and no buffer has them."""
    x, weight, bias, eps, stats = call.x, call.weight, call.bias, call.spec.eps, call.stats
    if isinstance(stats, FixedStats):
        if not fits(x, weight, bias, *stats):
            return None
        return F.batch_norm(x, *stats, weight, bias, False, 0.0, eps), None, None
    if stats.update is not None:
        mean, var, share = stats.update
        if not fits(x, weight, bias, mean, var):
            return None
        return F.batch_norm(x, mean, var, weight, bias, True, share, eps), None, None
    if not call.wants_moments and fits(x, weight, bias):
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps), None, None
    # TorchScript does not know that the function writes to statistics: where a trace reads them
    # afterwards, as below, its optimizer may read them before.
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return None
    if stats.running is None or not fits(x, weight, bias, *stats.running):
        return None
    # With a momentum of 1 the function hands over its moments. They replace copies of the running
    # statistics: in a graph that is rewritten to evaluation it normalizes with these instead, and
    # the averaging that follows leaves the statistics where they are, but for rounding.
    mean, var = (t.clone() for t in stats.running)
    z = F.batch_norm(x, mean, var, weight, bias, True, 1.0, eps)
    values = call.spec.pool.count(*as_ncs(x))
    return z, mean, var * ((values - 1) / values)


def over_last(
    x: Tensor,
    shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
) -> Tensor:
    """Normalize the last axes of ``x``, those of ``shape``, with or without centring."""
    if centred:
        return F.layer_norm(x, shape, weight, bias, eps)
    return F.rms_norm(x, shape, weight, eps)


def finish(z: Tensor, residual: Tensor | None, act: Act | None) -> Tensor:
    """Add ``residual`` to what a function of PyTorch returned, and apply the activation."""
    z = z if residual is None else z + residual
    return z if act is None else act(z)


def fits(x: Tensor, *others: Tensor | None, mixed: bool = True) -> bool:
    """Return whether PyTorch's functions take ``x`` with γ, β and statistics of such types.

    ``mixed``: whether they may all have the type that sums over ``x`` are kept in.
    """
    types = {t.dtype for t in others if t is not None}
    return types <= {x.dtype} or (mixed and types == {accumulator(x.dtype)})
