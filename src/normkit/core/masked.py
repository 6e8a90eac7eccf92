"""Moments of the values that a mask selects, as of padded sequences."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from normkit.core.moments import accumulator
from normkit.core.pools import Pool, as_ncs

__all__ = ["MaskedMoments", "masked_moments", "selected"]


class MaskedMoments(NamedTuple):
    """Moments of the selected values of each pool, and the input relative to their mean.

    Args:
        centred: input minus ``mean``, 0 where not selected, in float32 or wider, as the pool views
            it.
        values: number of selected values, of the shape ``pool.stats(N, C, S)`` as all below.
        mean: their mean; 0 in a pool without any.
        rest: what rounding left in it: the mean of ``centred``, detached.
        var: their biased variance; 0 in a pool without any.
    """

    centred: Tensor
    values: Tensor
    mean: Tensor
    rest: Tensor
    var: Tensor


def masked_moments(x: Tensor, mask: Tensor, pool: Pool) -> MaskedMoments:
    """Compute moments of the selected values of ``x`` (N, C, \\*) over ``pool``, differentiably.

    Args:
        x: 0 where it is not selected.
        mask: boolean, (N, 1, \\*), True where selected.

    >>> import torch
    >>> x = torch.tensor([[[1.0, 3.0, 0.0]], [[5.0, 0.0, 0.0]]])
    >>> mask = torch.tensor([[[True, True, False]], [[True, False, False]]])
    >>> m = masked_moments(x, mask, Pool("batch"))
    >>> int(m.values), float(m.mean), float(m.var)
    (3, 3.0, 2.6666667461395264)
    """
    n, c, s = as_ncs(x)
    x4 = x.reshape(pool.view(n, c, s)).to(accumulator(x.dtype))
    chosen = mask.reshape(n, 1, 1, s)
    positions = chosen.sum([d for d in pool.dims if d in (0, 3)], keepdim=True)
    count = positions * (c // pool.groups if pool.over == "group" else 1)
    total = count.clamp_min(1).to(x4.dtype)
    mean = x4.sum(pool.dims, keepdim=True) / total
    x4 = torch.addcmul(x4, mean, chosen.to(x4.dtype), value=-1)
    # Detached, since its derivative is zero but for rounding.
    rest = (x4.sum(pool.dims, keepdim=True) / total).detach()
    # Not the difference of two squares, which of a constant channel is rounding alone.
    var = torch.addcmul(x4, rest, chosen.to(x4.dtype), value=-1).square()
    var = var.sum(pool.dims, keepdim=True) / total
    return MaskedMoments(x4, count, mean, rest, var)


def selected(x: Tensor, mask: Tensor) -> Tensor:
    """Return the selected positions of ``x`` (N, C, \\*) as rows (M, C).

    ``mask``: boolean, (N, \\*) or (N, 1, \\*).
    """
    mask = mask.squeeze(1) if mask.dim() == x.dim() else mask
    return x.movedim(1, -1)[mask]
