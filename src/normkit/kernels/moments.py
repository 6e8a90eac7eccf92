"""Mean and variance alone, for those who measure and do not normalize."""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.core.moments import Moments
from normkit.core.pools import Pool, as_ncs
from normkit.kernels import cpu

__all__ = ["moments"]

_OVER = {"batch": 0, "group": 2}


def moments(x: Tensor, pool: Pool) -> Moments:
    """Moments of ``x`` (N, C, \\*) over a pool, one entry per pool, flat.

    The values of a call are read in float32 or wider, in two passes about their mean; what is
    given back is float64, so that merging many of them costs no digits.

    Args:
        x: floating-point, (N, C, \\*), in any memory format and on any device.
        pool: over ``"batch"`` or ``"group"``.

    >>> from normkit.core.pools import PER_CHANNEL
    >>> far = torch.tensor([[1e4 - 0.125], [1e4 + 0.125]])
    >>> moments(far, PER_CHANNEL).variance
    tensor([0.0156], dtype=torch.float64)
    """
    n, c, s = as_ncs(x)
    count = pool.count(n, c, s)
    found = None
    if cpu.fused is not None and pool.over in _OVER:
        found = cpu.fused.moments(x, _OVER[pool.over], pool.groups)
    if found is not None:
        high, low, _, variance = found.double().unbind(0)
        of = torch.full((), float(count), dtype=torch.float64)
        return Moments(of, high + low, variance * count)
    # Where float64 is not to be had (Apple's GPUs) the merging is done on the CPU.
    plain = Moments.of(x.detach().reshape(pool.view(n, c, s)), pool.dims)
    device = torch.device("cpu") if x.device.type == "mps" else x.device
    return Moments(
        plain.count.to(device).double(),
        plain.mean.flatten().to(device).double(),
        plain.m2.flatten().to(device).double(),
    )
