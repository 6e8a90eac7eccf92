"""Mean and variance without a normalization, for measuring."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from normkit.core.moments import Moments
from normkit.core.pools import Pool, as_ncs
from normkit.kernels import cpu, fused

__all__ = ["moments"]


def moments(x: Tensor, pool: Pool) -> Moments:
    """Compute moments of ``x`` (N, C, \\*) over a pool, one entry per pool, flat.

    Values are read in float32 or wider, in two passes about their mean; the result is float64, so
    that merging many of them costs no digits.

    Args:
        x: floating-point, (N, C, \\*), in any memory format and on any device.
        pool: over ``"batch"`` or ``"group"``.

    >>> from normkit.core.pools import PER_CHANNEL
    >>> far = torch.tensor([[1e4 - 0.125], [1e4 + 0.125]])
    >>> moments(far, PER_CHANNEL).variance
    tensor([0.0156], dtype=torch.float64)
    """
    return next(m for way in WAYS if (m := way(x, pool)) is not None)


def _fused(x: Tensor, pool: Pool) -> Moments | None:
    if cpu.fused is None or pool.over not in ("batch", "group"):
        return None
    rows = cpu.fused.moments(x, fused.POOLS[pool.over], pool.groups)
    if rows is None:
        return None
    high, low, _, variance = rows.double().unbind(0)
    if not bool(variance.isfinite().all()):
        return _portable(x, pool)
    count = pool.count(*as_ncs(x))
    values = torch.full((), float(count), dtype=torch.float64, device="cpu")
    return Moments(values, high + low, variance * count)


def _portable(x: Tensor, pool: Pool) -> Moments:
    x4 = x.detach().reshape(pool.view(*as_ncs(x)))
    m = Moments.of(x4, pool.dims)
    if x.is_cpu and not bool(m.m2.isfinite().all()):
        # Squares beyond float32, unless a value is not finite.
        m = Moments.of(x4.double(), pool.dims)
    # Apple's GPUs have no float64, so their moments are merged on the CPU.
    device = torch.device("cpu") if x.device.type == "mps" else x.device
    return Moments(
        m.count.to(device).double(),
        m.mean.flatten().to(device).double(),
        m.m2.flatten().to(device).double(),
    )


WAYS: tuple[Callable[[Tensor, Pool], Moments | None], ...] = (_fused, _portable)
"""In order of preference; each returns None for what it does not take, the last one never."""
