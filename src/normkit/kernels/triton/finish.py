"""Merge partial results into the moments of pools, and into what the gradients need.

Every sum has a fixed order, so results are the same from run to run. The layout of partial results
is that of :class:`normkit.kernels.triton.geometry.Partials`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import NamedTuple

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from normkit.kernels.call import Running
from normkit.kernels.triton.elements import load, merge, merge_along, rstd_of
from normkit.kernels.triton.geometry import Partials, blocks
from normkit.kernels.triton.problem import Problem, launch_options
from normkit.kernels.triton.terms import ANY

__all__ = ["Slopes", "finish_moments", "finish_sums"]

AT_ONCE = (16, 128, 1024)
"""Partial results of a pool that a program merges in a step. Few sizes: each is compiled."""

OF_CHANNELS = (64, 16)
"""Partial results, and channels, of a step towards the gradients of γ and β."""

MANY = 4096
"""Pools above which a program finishes several."""

_OPTIONS = launch_options(4)


@triton.jit(do_not_specialize=ANY)
def _merge_moments(
    partials, stats, running_mean, running_var, pools, pools_of_part, splits, width, members, total,
    size, unbiasing, share, rest, eps, BLOCK_P: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    pool = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    present = pool < pools
    first = pool // pools_of_part * (splits * width) + pool % pools_of_part * members
    items = splits * members
    i = tl.arange(0, BLOCK_I)
    at = partials + first[:, None] + (i // members * width + i % members)[None, :]
    mask = present[:, None] & (i < items)[None, :]
    count, mean, low, m2 = merge_along(
        load(at, mask), load(at + total, mask), load(at + 2 * total, mask),
        load(at + 3 * total, mask), 1,
    )  # fmt: skip
    for start in range(BLOCK_I, items, BLOCK_I):
        j = start + i
        at = partials + first[:, None] + (j // members * width + j % members)[None, :]
        mask = present[:, None] & (j < items)[None, :]
        count_b, mean_b, low_b, m2_b = merge_along(
            load(at, mask), load(at + total, mask), load(at + 2 * total, mask),
            load(at + 3 * total, mask), 1,
        )  # fmt: skip
        count, mean, low, m2 = merge(count, mean, low, m2, count_b, mean_b, low_b, m2_b)
    mean, low, m2 = tl.sum(mean, 1), tl.sum(low, 1), tl.sum(m2, 1)  # drops the axis of size one
    var = m2 / size
    tl.store(stats + pool, mean, present)
    tl.store(stats + pools + pool, low, present)
    tl.store(stats + 2 * pools + pool, rstd_of(var, eps), present)
    tl.store(stats + 3 * pools + pool, var, present)
    if running_mean is not None:
        # Weighed, not r + (v - r) * share: with a share near 1 that would leave of a small value
        # what rounding leaves of a large running one.
        r = load(running_mean + pool, present)
        tl.store(running_mean + pool, r * rest + mean * share, present)
        r = load(running_var + pool, present)
        tl.store(running_var + pool, r * rest + var * unbiasing * share, present)


@triton.jit(do_not_specialize=ANY)
def _merge_slopes(
    sums, stats, weight, slopes, dweight, dbias, pools, pools_of_part, splits, width, members,
    spread, channels, total, size, CENTRED: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    pool = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    present = pool < pools
    column = pool % pools_of_part * members
    first = pool // pools_of_part * (splits * width) + column
    items = splits * members
    dz = tl.zeros([BLOCK_P, BLOCK_I], tl.float32)
    dzx, g1, g2 = dz, dz, dz
    for start in range(0, items, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        at = sums + first[:, None] + (i // members * width + i % members)[None, :]
        mask = present[:, None] & (i < items)[None, :]
        a = load(at, mask)
        b = load(at + total, mask)
        dz += a
        dzx += b
        if weight is not None:
            channel = (column[:, None] + (i % members)[None, :]) // spread % channels
            gamma = load(weight + channel, mask)
            g1 += a * gamma
            g2 += b * gamma
    rstd = load(stats + 2 * pools + pool, present)
    # Only where a pool is a channel.
    if dweight is not None:
        tl.store(dweight + pool, tl.sum(dzx, 1) * rstd, present)
    if dbias is not None:
        tl.store(dbias + pool, tl.sum(dz, 1), present)
    if slopes is not None:
        if weight is None:
            g1, g2 = dz, dzx
        if CENTRED:
            tl.store(slopes + pool, -rstd * (tl.sum(g1, 1) / size), present)
        else:
            tl.store(slopes + pool, rstd * 0.0, present)
        # Not rstd cubed, which float32 may not hold.
        scaled = rstd * (tl.sum(g2, 1) / size)
        tl.store(slopes + pools + pool, -rstd * (rstd * scaled), present)


@triton.jit(do_not_specialize=ANY)
def _merge_parameters(
    sums, stats, dweight, dbias, pools, pools_of_part, parts, splits, width, members, spread,
    channels, total, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    present = channel < channels
    period = channels * spread
    copies = width // period
    items = parts * splits * copies * spread
    dw = tl.zeros([BLOCK_I, BLOCK_C], tl.float32)
    db = dw
    for start in range(0, items, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        row = i // (spread * copies)
        offset = i // spread % copies * period + i % spread
        column = offset[:, None] + (channel * spread)[None, :]
        mask = (i < items)[:, None] & present[None, :]
        at = sums + (row * width)[:, None] + column
        if dweight is not None:
            pool = (row // splits * pools_of_part)[:, None] + column // members
            dw += load(at + total, mask) * load(stats + 2 * pools + pool, mask)
        if dbias is not None:
            db += load(at, mask)
    if dweight is not None:
        tl.store(dweight + channel, tl.sum(dw, 0), present)
    if dbias is not None:
        tl.store(dbias + channel, tl.sum(db, 0), present)


class Slopes(NamedTuple):
    """Results of :func:`finish_sums`.

    Args:
        of_pools: (2, pools), what each pool adds to dx: a constant, and the factor of x − μ.
    """

    of_pools: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def _tile(pools: int, items: int) -> tuple[int, int]:
    """Return how many pools a program finishes, and how many partial results it takes at once."""
    of_items = next((size for size in AT_ONCE if items <= size), AT_ONCE[-1])
    return 1 if pools <= MANY else AT_ONCE[-1] // of_items, of_items


def finish_moments(
    partials: Tensor,
    layout: Partials,
    problem: Problem,
    update: Running | None = None,
) -> Tensor:
    """Merge ``partials`` (4, parts, splits, width) into statistics (4, pools).

    ``update``: running mean and variance, moved by a share towards mean and unbiased variance.
    """
    stats = partials.new_empty(4, layout.pools)
    running_mean, running_var, share = update or (None, None, 0.0)
    unbiasing = layout.size / (layout.size - 1) if layout.size > 1 else float("nan")
    of_pools, of_items = _tile(layout.pools, layout.splits * layout.members)
    _merge_moments[(blocks(layout.pools, of_pools),)](
        partials, stats, running_mean, running_var, layout.pools, layout.pools_of_part,
        layout.splits, layout.width, layout.members, layout.total, float(layout.size), unbiasing,
        share, 1 - share, problem.eps, BLOCK_P=of_pools, BLOCK_I=of_items, **_OPTIONS,
    )  # fmt: skip
    return stats


def finish_sums(
    sums: Tensor,
    layout: Partials,
    problem: Problem,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> Slopes:
    """Merge ``sums`` (2, parts, splits, width) of dz and dz·(x − μ).

    Args:
        needs: whether to return what the gradient of x needs, and those of weight and bias.
    """
    slopes = sums.new_empty(2, layout.pools) if needs[0] else None
    dweight = torch.empty_like(weight) if weight is not None and needs[1] else None
    dbias = torch.empty_like(bias) if bias is not None and needs[2] else None
    pool_is_channel = problem.over == "batch"
    common = layout.pools, layout.pools_of_part
    if slopes is not None or pool_is_channel:
        of_pools, of_items = _tile(layout.pools, layout.splits * layout.members)
        _merge_slopes[(blocks(layout.pools, of_pools),)](
            sums, stats, weight, slopes, dweight if pool_is_channel else None,
            dbias if pool_is_channel else None, *common, layout.splits, layout.width,
            layout.members, layout.spread, layout.channels, layout.total, float(layout.size),
            CENTRED=problem.centred, BLOCK_P=of_pools, BLOCK_I=of_items, **_OPTIONS,
        )  # fmt: skip
    if not pool_is_channel and (dweight is not None or dbias is not None):
        of_items, of_channels = OF_CHANNELS
        _merge_parameters[(blocks(layout.channels, of_channels),)](
            sums, stats, dweight, dbias, *common, layout.parts, layout.splits, layout.width,
            layout.members, layout.spread, layout.channels, layout.total, BLOCK_I=of_items,
            BLOCK_C=of_channels, **_OPTIONS,
        )  # fmt: skip
    return Slopes(slopes, dweight, dbias)
