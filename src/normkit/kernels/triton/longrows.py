"""Pools of more values than one tile: read in a loop, once for the moments and once to normalize.

Where pools are few, each is split among programs, whose sums are merged in a fixed order.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from normkit.kernels.triton.elements import (
    load,
    merge,
    merge_along,
    moments_along,
    store_stats,
)
from normkit.kernels.triton.lines import lines_of, plan_long
from normkit.kernels.triton.problem import Problem, launch_options
from normkit.kernels.triton.rows import COUNTS, place, sums_of
from normkit.kernels.triton.terms import dz_of, parameter, y_of

__all__ = ["backward", "forward", "moments"]

AT_ONCE = 1024
"""Partial results that a program merges."""


@triton.jit(do_not_specialize=COUNTS)
def _moments(
    x, stats, partials,
    groups, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length, step,
    pools, splits, walk, eps,
    CENTRED: tl.constexpr, POOLS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    group, tile = tl.program_id(0) % groups, tl.program_id(0) // groups
    pool, begin, here = place(
        tile, group, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length,
        POOLS,
    )  # fmt: skip
    mean = tl.zeros([POOLS, 1], tl.float32)
    low = tl.zeros([POOLS, 1], tl.float32)
    m2 = tl.zeros([POOLS, 1], tl.float32)
    start = tl.program_id(1) * walk
    end = tl.minimum(start + walk, length)
    for first in range(start, end, VALUES):
        k = first + tl.arange(0, VALUES)[None, :]
        mask = here & (k < length)
        value = load(x + begin + k.to(tl.int64) * step, mask)
        count = tl.minimum(length - first, VALUES)
        mean_b, low_b, m2_b = moments_along(value, mask, count, 1, CENTRED)
        _, mean, low, m2 = merge(first - start, mean, low, m2, count, mean_b, low_b, m2_b)
    if partials is None:
        store_stats(stats, pools, pool, mean, low, m2, length, eps, here)
    else:
        at = partials + tl.program_id(1).to(tl.int64) * pools + pool
        total = splits.to(tl.int64) * pools
        tl.store(at, mean, here)
        tl.store(at + total, low, here)
        tl.store(at + 2 * total, m2, here)


@triton.jit(do_not_specialize=COUNTS)
def _merge(
    partials, stats, length, pools, splits, walk, eps, SPLITS: tl.constexpr, POOLS: tl.constexpr,
):  # fmt: skip
    split = tl.arange(0, SPLITS)[:, None]
    pool = tl.program_id(0) * POOLS + tl.arange(0, POOLS)[None, :]
    here = pool < pools
    mask = (split < splits) & here
    count = tl.maximum(tl.minimum(length - split * walk, walk), 0) * 1.0
    at = partials + split.to(tl.int64) * pools + pool
    total = splits.to(tl.int64) * pools
    _, mean, low, m2 = merge_along(
        tl.where(mask, count, 0.0), load(at, mask), load(at + total, mask),
        load(at + 2 * total, mask), 0,
    )  # fmt: skip
    store_stats(stats, pools, pool, mean, low, m2, length, eps, here)


@triton.jit(do_not_specialize=COUNTS)
def _normalize(
    x, weight, bias, residual, y, stats,
    groups, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length, step,
    pools, slope,
    ACT: tl.constexpr, HAS_ACT: tl.constexpr, POOLS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    group, tile = tl.program_id(0) % groups, tl.program_id(0) // groups
    pool, begin, here = place(
        tile, group, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length,
        POOLS,
    )  # fmt: skip
    k = tl.program_id(1) * VALUES + tl.arange(0, VALUES)[None, :]
    inside, channel = k < length, group * length + k
    at, mask = begin + k.to(tl.int64) * step, here & inside
    mean, low = load(stats + pool, here), load(stats + pools + pool, here)
    scale = load(stats + 2 * pools + pool, here) * parameter(weight, channel, inside, 1.0)
    shift = parameter(bias, channel, inside, 0.0)
    d = (load(x + at, mask) - mean) - low
    tl.store(y + at, y_of(d, scale, shift, residual, at, mask, ACT, slope, HAS_ACT), mask)


@triton.jit(do_not_specialize=COUNTS)
def _sums(
    dy, x, weight, bias, other, stats, sums,
    groups, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length, step,
    pools, splits, walk, slope,
    ACT: tl.constexpr, HAS_ACT: tl.constexpr, FROM_OUTPUT: tl.constexpr,
    POOLS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    group, tile = tl.program_id(0) % groups, tl.program_id(0) // groups
    pool, begin, here = place(
        tile, group, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length,
        POOLS,
    )  # fmt: skip
    mean, low = load(stats + pool, here), load(stats + pools + pool, here)
    rstd = load(stats + 2 * pools + pool, here)
    g1 = tl.zeros([POOLS, VALUES], tl.float32)
    g2 = tl.zeros([POOLS, VALUES], tl.float32)
    start = tl.program_id(1) * walk
    for first in range(start, tl.minimum(start + walk, length), VALUES):
        k = first + tl.arange(0, VALUES)[None, :]
        inside, channel = k < length, group * length + k
        at, mask = begin + k.to(tl.int64) * step, here & inside
        d = tl.where(mask, (load(x + at, mask) - mean) - low, 0.0)
        gamma = parameter(weight, channel, inside, 1.0)
        shift = parameter(bias, channel, inside, 0.0)
        dz = dz_of(dy, d, rstd * gamma, shift, other, at, mask, ACT, slope, HAS_ACT, FROM_OUTPUT)
        g1 += dz * gamma
        g2 += dz * gamma * d
    to = sums + tl.program_id(1).to(tl.int64) * pools + pool
    tl.store(to, tl.sum(g1, 1, keep_dims=True), here)
    tl.store(to + splits.to(tl.int64) * pools, tl.sum(g2, 1, keep_dims=True), here)


@triton.jit(do_not_specialize=COUNTS)
def _backward(
    dy, x, weight, bias, other, stats, sums, dx, dresidual, partials,
    groups, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length, step,
    pools, tiles, parts, slope,
    OWN_STATS: tl.constexpr, CENTRED: tl.constexpr, ACT: tl.constexpr, HAS_ACT: tl.constexpr,
    FROM_OUTPUT: tl.constexpr, POOLS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    group, part = tl.program_id(0) % groups, tl.program_id(0) // groups
    k = tl.program_id(1) * VALUES + tl.arange(0, VALUES)[None, :]
    inside, channel = k < length, group * length + k
    gamma = parameter(weight, channel, inside, 1.0)
    shift = parameter(bias, channel, inside, 0.0)
    dweight = tl.zeros([1, VALUES], tl.float32)
    dbias = tl.zeros([1, VALUES], tl.float32)
    for tile in range(part, tiles, parts):
        pool, begin, here = place(
            tile, group, blocks, inner, sample_pools, sample_values, pools_apart, values_apart,
            length, POOLS,
        )  # fmt: skip
        at, mask = begin + k.to(tl.int64) * step, here & inside
        mean, low = load(stats + pool, here), load(stats + pools + pool, here)
        rstd = load(stats + 2 * pools + pool, here)
        d = tl.where(mask, (load(x + at, mask) - mean) - low, 0.0)
        dz = dz_of(dy, d, rstd * gamma, shift, other, at, mask, ACT, slope, HAS_ACT, FROM_OUTPUT)
        if dresidual is not None:
            tl.store(dresidual + at, dz, mask)
        if partials is not None:
            dweight += tl.sum(dz * (d * rstd), 0, keep_dims=True)
            dbias += tl.sum(dz, 0, keep_dims=True)
        if dx is not None:
            g = dz * gamma
            if OWN_STATS:
                if CENTRED:
                    g -= load(sums + pool, here) / length
                g -= d * (rstd * rstd * (load(sums + pools + pool, here) / length))
            tl.store(dx + at, g * rstd, mask)
    if partials is not None:
        width = groups * length
        begin = part.to(tl.int64) * width + channel
        tl.store(partials + begin, dweight, inside)
        tl.store(partials + parts.to(tl.int64) * width + begin, dbias, inside)


def moments(x: Tensor, problem: Problem) -> Tensor:
    """Return stats (4, pools): mean, what rounding took from it, 1/√(σ² + ε), biased variance."""
    lines = lines_of(x, problem)
    tiles = plan_long(lines, x.element_size())
    splits, walk = tiles.splits, tiles.walk
    stats, partials = x.new_empty((4, lines.pools), dtype=torch.float32), None
    if splits > 1:
        partials = x.new_empty((3, splits, lines.pools), dtype=torch.float32)
    _moments[(tiles.tiles * lines.groups, splits)](
        x, stats, partials, *lines.arguments(tiles), lines.pools, splits, walk, problem.eps,
        CENTRED=problem.centred, POOLS=tiles.pools, VALUES=tiles.values,
        **launch_options(tiles.warps),
    )  # fmt: skip
    if partials is not None:
        rows = triton.next_power_of_2(splits)
        _merge[(triton.cdiv(lines.pools, max(AT_ONCE // rows, 1)),)](
            partials, stats, lines.length, lines.pools, splits, walk, problem.eps, SPLITS=rows,
            POOLS=max(AT_ONCE // rows, 1), **launch_options(4),
        )  # fmt: skip
    return stats


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    problem: Problem,
    fixed: Tensor | None = None,
    update: None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output and the moments; ``fixed`` replaces those of the values."""
    lines = lines_of(x, problem)
    tiles = plan_long(lines, x.element_size())
    y, stats = torch.empty_like(x), moments(x, problem) if fixed is None else fixed
    _normalize[(tiles.tiles * lines.groups, triton.cdiv(lines.length, tiles.values))](
        x, weight, bias, residual, y, stats, *lines.arguments(tiles), lines.pools, problem.slope,
        ACT=problem.act, HAS_ACT=problem.has_act, POOLS=tiles.pools, VALUES=tiles.values,
        **launch_options(tiles.warps),
    )  # fmt: skip
    return y, stats


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    other: Tensor | None,
    stats: Tensor,
    other_is_output: bool,
    needs: tuple[bool, bool, bool, bool],
    problem: Problem,
    own_stats: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, weight, bias and residual that ``needs`` marks."""
    lines = lines_of(x, problem)
    tiles = plan_long(lines, x.element_size())
    options = {
        "ACT": problem.act, "HAS_ACT": problem.has_act, "FROM_OUTPUT": other_is_output,
        "POOLS": tiles.pools, "VALUES": tiles.values, **launch_options(tiles.warps),
    }  # fmt: skip
    sums = None
    if needs[0] and own_stats:
        sums = x.new_empty((2, tiles.splits, lines.pools), dtype=torch.float32)
        _sums[(tiles.tiles * lines.groups, tiles.splits)](
            dy, x, weight, bias, other, stats, sums, *lines.arguments(tiles), lines.pools,
            tiles.splits, tiles.walk, problem.slope, **options,
        )  # fmt: skip
        if tiles.splits > 1:
            sums = sums.sum(1)
    dx = torch.empty_like(x) if needs[0] else None
    dresidual = torch.empty_like(x) if needs[3] else None
    partials = None
    if needs[1] or needs[2]:
        partials = x.new_empty((2, tiles.parts, lines.width), dtype=torch.float32)
    _backward[(tiles.parts * lines.groups, triton.cdiv(lines.length, tiles.values))](
        dy, x, weight, bias, other, stats, sums, dx, dresidual, partials, *lines.arguments(tiles),
        lines.pools, tiles.tiles, tiles.parts, problem.slope, OWN_STATS=own_stats,
        CENTRED=problem.centred, **options,
    )  # fmt: skip
    return dx, *sums_of(partials, weight, bias, needs), dresidual
