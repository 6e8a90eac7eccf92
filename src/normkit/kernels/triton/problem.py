"""One normalization as the kernels take it: numbers and names, no tensors."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from normkit.core.formula import Spec
from normkit.core.pools import Pool
from normkit.kernels import fused

__all__ = ["FILL", "WARPS", "Problem", "exceeds", "launch_options", "of_spec"]

FILL = 1024
"""Programs that keep any GPU of today busy: a few for each of 108 to 304 multiprocessors.

A constant, so that results do not depend on the device's size: how often a sum is split decides
its rounding.
"""

WARPS = 2 * FILL
"""Warps of all programs together, at least: a quarter of what the largest GPU of today holds."""


class Problem(NamedTuple):
    """Normalization of a tensor (N, C, \\*): everything but the tensors.

    Args:
        over, groups: the pool, as in :class:`normkit.core.pools.Pool`.
        eps: added to the variance.
        act: activation by its number: 0 a slope below zero (1 none, 0 ReLU), 1 SiLU, 2 GELU,
            3 ReLU6.
        slope: of activation 0.
        centred: False for RMS normalization: mean and what rounding took from it are 0, and the
            variance is the mean square.
    """

    over: Literal["batch", "ghost", "group", "position"]
    groups: int
    eps: float
    act: int = 0
    slope: float = 1.0
    centred: bool = True

    @property
    def pool(self) -> Pool:
        """Pool of the moments."""
        return Pool(self.over, self.groups)


def of_spec(spec: Spec) -> Problem:
    """Return ``spec`` as the kernels take it."""
    act, slope = fused.act_numbers(spec.act)
    return Problem(spec.pool.over, spec.pool.groups, spec.eps, act, slope, spec.centred)


def exceeds(pool: Pool, n: int, c: int, s: int) -> bool:
    """Return whether an input (N, C, S) is too large for the kernels' numbers of 32 bits.

    These say where a value lies in its sample, which row of S values it belongs to, and where a
    pool's four numbers lie. Of the tiles of a pool that does not fit into one, each of 64 values at
    least, 2048 in a row, a launch has 65,535 at most.
    """
    numbers = 4 * math.prod(pool.stats(n, c, s))
    rows = pool.over == "position" or (pool.over == "group" and s == 1)
    if max(c * s, numbers, 0 if rows else n * c) >= 2**31:
        return True
    return rows and c >= (2**22 if s > 1 else 2**26)


def launch_options(warps: int) -> dict[str, Any]:
    """Return the options of each launch of a kernel with so many warps.

    Products and sums are fused, which rounds once where two operations round twice. Triton's
    default changes with 3.10, and 3.9 warns of that.
    """
    return {"num_warps": warps, "enable_fp_fusion": True}
