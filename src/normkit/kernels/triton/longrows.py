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
    merge_along,
    moments_about,
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
    start = tl.program_id(1) * walk
    end = tl.minimum(start + walk, length)
    k = start + tl.arange(0, VALUES)[None, :]
    mask = here & (k < end)
    d = load(x + begin + k * step, mask)
    pivot = tl.zeros([POOLS, 1], tl.float32)
    if CENTRED:
        pivot = tl.sum(d, 1, keep_dims=True) / tl.minimum(end - start, VALUES)
        d = tl.where(mask, d - pivot, 0.0)
    dd = d * d
    for first in range(start + VALUES, end, VALUES):
        k = first + tl.arange(0, VALUES)[None, :]
        mask = here & (k < end)
        value = load(x + begin + k * step, mask)
        if CENTRED:
            value = tl.where(mask, value - pivot, 0.0)
        d += value
        dd += value * value
    of_d = tl.zeros([POOLS, 1], tl.float32)
    if CENTRED:
        of_d = tl.sum(d, 1, keep_dims=True)
    of_squares = tl.sum(dd, 1, keep_dims=True)
    mean, low, m2 = moments_about(pivot, (end - start) * 1.0, of_d, of_squares)
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
    pools,
    ACT: tl.constexpr, SLOPE: tl.constexpr, POOLS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    group, tile = tl.program_id(0) % groups, tl.program_id(0) // groups
    pool, begin, here = place(
        tile, group, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length,
        POOLS,
    )  # fmt: skip
    k = tl.program_id(1) * VALUES + tl.arange(0, VALUES)[None, :]
    inside, channel = k < length, group * length + k
    at, mask = begin + k * step, here & inside
    mean, low = load(stats + pool, here), load(stats + pools + pool, here)
    scale = load(stats + 2 * pools + pool, here) * parameter(weight, channel, inside, 1.0)
    shift = parameter(bias, channel, inside, 0.0)
    d = (load(x + at, mask) - mean) - low
    tl.store(y + at, y_of(d, scale, shift, residual, at, mask, ACT, SLOPE), mask)


@triton.jit(do_not_specialize=COUNTS)
def _sums(
    dy, x, weight, bias, other, stats, sums,
    groups, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length, step,
    pools, splits, walk,
    ACT: tl.constexpr, SLOPE: tl.constexpr, FROM_OUTPUT: tl.constexpr,
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
        at, mask = begin + k * step, here & inside
        d = tl.where(mask, (load(x + at, mask) - mean) - low, 0.0)
        gamma = parameter(weight, channel, inside, 1.0)
        shift = parameter(bias, channel, inside, 0.0)
        dz = dz_of(dy, d, rstd * gamma, shift, other, at, mask, ACT, SLOPE, FROM_OUTPUT)
        g1 += dz * gamma
        g2 += dz * gamma * d
    to = sums + tl.program_id(1).to(tl.int64) * pools + pool
    tl.store(to, tl.sum(g1, 1, keep_dims=True), here)
    tl.store(to + splits.to(tl.int64) * pools, tl.sum(g2, 1, keep_dims=True), here)


@triton.jit(do_not_specialize=COUNTS)
def _backward(
    dy, x, weight, bias, other, stats, sums, dx, dresidual, partials,
    groups, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length, step,
    pools, tiles, parts,
    OWN_STATS: tl.constexpr, CENTRED: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr, POOLS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    group, part = tl.program_id(0) % groups, tl.program_id(0) // groups
    k = tl.program_id(1) * VALUES + tl.arange(0, VALUES)[None, :]
    inside, channel = k < length, group * length + k
    dweight = tl.zeros([POOLS, VALUES], tl.float32)
    dbias = tl.zeros([POOLS, VALUES], tl.float32)
    for tile in range(part, tiles, parts):
        pool, begin, here = place(
            tile, group, blocks, inner, sample_pools, sample_values, pools_apart, values_apart,
            length, POOLS,
        )  # fmt: skip
        at, mask = begin + k * step, here & inside
        mean, low = load(stats + pool, here), load(stats + pools + pool, here)
        rstd = load(stats + 2 * pools + pool, here)
        d = tl.where(mask, (load(x + at, mask) - mean) - low, 0.0)
        # Read in each turn from the nearest cache, so as not to occupy registers.
        scale = rstd * parameter(weight, channel, inside, 1.0)
        shift = parameter(bias, channel, inside, 0.0)
        dz = dz_of(dy, d, scale, shift, other, at, mask, ACT, SLOPE, FROM_OUTPUT)
        if dresidual is not None:
            tl.store(dresidual + at, dz, mask)
        normal = d * rstd
        if partials is not None:
            dweight += dz * normal
            dbias += dz
        if dx is not None:
            g = dz * scale
            if OWN_STATS:
                g -= normal * (rstd * (rstd * (load(sums + pools + pool, here) / length)))
                if CENTRED:
                    g -= rstd * (load(sums + pool, here) / length)
            tl.store(dx + at, g, mask)
    if partials is not None:
        width = groups * length
        begin = part.to(tl.int64) * width + channel
        tl.store(partials + begin, tl.sum(dweight, 0, keep_dims=True), inside)
        begin += parts.to(tl.int64) * width
        tl.store(partials + begin, tl.sum(dbias, 0, keep_dims=True), inside)


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
        x, weight, bias, residual, y, stats, *lines.arguments(tiles), lines.pools,
        ACT=problem.act, SLOPE=problem.slope, POOLS=tiles.pools, VALUES=tiles.values,
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
        "ACT": problem.act, "SLOPE": problem.slope, "FROM_OUTPUT": other_is_output,
        "POOLS": tiles.pools, "VALUES": tiles.values, **launch_options(tiles.warps),
    }  # fmt: skip
    sums = None
    if needs[0] and own_stats:
        sums = x.new_empty((2, tiles.splits, lines.pools), dtype=torch.float32)
        _sums[(tiles.tiles * lines.groups, tiles.splits)](
            dy, x, weight, bias, other, stats, sums, *lines.arguments(tiles), lines.pools,
            tiles.splits, tiles.walk, **options,
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
        lines.pools, tiles.tiles, tiles.parts, OWN_STATS=own_stats,
        CENTRED=problem.centred, **options,
    )  # fmt: skip
    return dx, *sums_of(partials, weight, bias, needs), dresidual
