"""Calls whose squares go beyond float32, computed again in float64, on a CPU.

The sums over float32 and bfloat16 are kept in float32, where the square of a deviation of 2·10¹⁹ is
infinite and that of 10⁻²³ is zero: the output would be zero, or infinite, for values that are
neither. The moments show it, so the usual call pays for a look at them alone. Sums of variances
must fit too, so all from 10³⁰ on are kept in float64; what float64 cannot keep is refused where a
layer remembers it (:mod:`normkit.nn.stats_range`).

Other devices, and graphs that are compiled, traced or transformed, could not look without waiting
for the values; there the result is that of ``torch.nn``'s layers. Moments to normalize with that
are float64 need no look: they are used as such everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from normkit.kernels.call import BatchStats, Call, FixedStats, Normalized, changed

__all__ = ["beyond_float32", "has_wider_stats", "in_float64", "may_exceed"]

# Where the smallest 1/√(σ² + ε) that float32 can have lost most digits of the variance, and where
# a sum of variances may exceed it.
_MOST = 1e15


def may_exceed(call: Call) -> bool:
    """Return whether the squares of such values can go beyond float32 and somebody can look."""
    return call.x.is_cpu and call.x.dtype in (torch.float32, torch.bfloat16)


def has_wider_stats(call: Call) -> bool:
    """Return whether the call normalizes with moments that float32 may not hold."""
    stats = call.stats
    return (
        isinstance(stats, FixedStats)
        and stats.var.dtype == torch.float64
        and call.x.dtype != torch.float64
    )


def beyond_float32(rstd: Tensor) -> bool:
    """Return whether 1/√(σ² + ε) of some pool is near zero, not a number, or without digits."""
    rstd = rstd.detach()
    return rstd.numel() > 0 and not bool(((rstd > 1 / _MOST) & (rstd < _MOST)).all())


def in_float64(run: Callable[[Call], Normalized], call: Call) -> Normalized:
    """Compute ``call`` in float64, differentiably, and round the output to the input's type.

    The caller of ``call`` updates the buffers; the moments are float64.
    """
    stats = BatchStats() if isinstance(call.stats, BatchStats) else call.stats
    residual = None if call.residual is None else call.residual.double()
    y, mean, var, values = run(changed(call, x=call.x.double(), residual=residual, stats=stats))
    return Normalized(y.to(call.x.dtype), mean, var, values)
