"""Pools that fit into one tile: each value is read once and its result written once.

Groups of channels without space, and positions; :mod:`normkit.kernels.triton.lines` says how they
lie. Longer ones are for :mod:`normkit.kernels.triton.longrows`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from normkit.kernels.triton.elements import load, moments_along, store_stats
from normkit.kernels.triton.lines import BACKWARD, FORWARD, lines_of, plan
from normkit.kernels.triton.problem import Problem, launch_options
from normkit.kernels.triton.terms import dz_of, parameter, y_of

__all__ = [
    "COUNTS",
    "backward",
    "fits_backward",
    "fits_forward",
    "forward",
    "moments",
    "place",
    "sums_of",
]

COUNTS = ["blocks", "inner", "pools", "sample_pools", "tiles", "parts", "splits", "walk"]
"""Arguments of kernels on which no access to memory depends.

Triton would compile a kernel again where one of them is 1, or divisible by 16.
"""


@triton.jit
def place(
    tile, group, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length,
    POOLS: tl.constexpr,
):  # fmt: skip
    """Return a tile's pools, the offset of their first values, and which exist, as columns."""
    sample = (tile // blocks).to(tl.int64)
    i = (tile % blocks) * POOLS + tl.arange(0, POOLS)[:, None]
    here = i < inner
    i = i.to(tl.int64)
    pool = sample * sample_pools + i * pools_apart + group
    begin = sample * sample_values + i * values_apart + group * length
    return pool, begin, here


@triton.jit(do_not_specialize=COUNTS)
def _forward(
    x, weight, bias, residual, y, stats,
    groups, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length, step,
    pools, eps,
    FIXED: tl.constexpr, CENTRED: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
    POOLS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    group, tile = tl.program_id(0) % groups, tl.program_id(0) // groups
    pool, begin, here = place(
        tile, group, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length,
        POOLS,
    )  # fmt: skip
    k = tl.arange(0, VALUES)[None, :]
    inside = k < length
    at, mask = begin + k * step, here & inside
    value = load(x + at, mask)
    if FIXED:
        mean, low = load(stats + pool, here), load(stats + pools + pool, here)
        rstd = load(stats + 2 * pools + pool, here)
        d = (value - mean) - low
    else:
        mean, low, m2, d = moments_along(value, mask, length, 1, CENTRED)
        rstd = store_stats(stats, pools, pool, mean, low, m2, length, eps, here)
    if y is not None:
        channel = group * length + k
        shift = parameter(bias, channel, inside, 0.0)
        scale = rstd * parameter(weight, channel, inside, 1.0)
        tl.store(y + at, y_of(d, scale, shift, residual, at, mask, ACT, SLOPE), mask)


@triton.jit(do_not_specialize=COUNTS)
def _backward(
    dy, x, weight, bias, other, stats, dx, dresidual, partials,
    groups, blocks, inner, sample_pools, sample_values, pools_apart, values_apart, length, step,
    pools, tiles, parts,
    OWN_STATS: tl.constexpr, CENTRED: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr, POOLS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    group, part = tl.program_id(0) % groups, tl.program_id(0) // groups
    k = tl.arange(0, VALUES)[None, :]
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
                g2 = tl.sum(g * normal, 1, keep_dims=True) / length
                if CENTRED:
                    g -= tl.sum(g, 1, keep_dims=True) / length
                g -= normal * g2
            tl.store(dx + at, g, mask)
    if partials is not None:
        width = groups * length
        begin = part.to(tl.int64) * width + channel
        tl.store(partials + begin, tl.sum(dweight, 0, keep_dims=True), inside)
        begin += parts.to(tl.int64) * width
        tl.store(partials + begin, tl.sum(dbias, 0, keep_dims=True), inside)


def fits_forward(x: Tensor, problem: Problem) -> bool:
    """Return whether the pools of ``x`` fit into a forward pass's tile."""
    return plan(lines_of(x, problem), x.element_size(), FORWARD) is not None


def fits_backward(x: Tensor, problem: Problem) -> bool:
    """Return whether the pools of ``x`` fit into a backward pass's tile."""
    return plan(lines_of(x, problem), x.element_size(), BACKWARD) is not None


def moments(x: Tensor, problem: Problem) -> Tensor:
    """Return stats (4, pools): mean, what rounding took from it, 1/√(σ² + ε), biased variance."""
    stats = x.new_empty((4, lines_of(x, problem).pools), dtype=torch.float32)
    _launch_forward(x, None, None, None, None, stats, problem, False)
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
    y, stats = torch.empty_like(x), fixed
    if stats is None:
        stats = x.new_empty((4, lines_of(x, problem).pools), dtype=torch.float32)
    _launch_forward(x, weight, bias, residual, y, stats, problem, fixed is not None)
    return y, stats


def _launch_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor | None,
    stats: Tensor,
    problem: Problem,
    fixed: bool,
) -> None:
    lines = lines_of(x, problem)
    tiles = plan(lines, x.element_size(), FORWARD)
    assert tiles is not None
    _forward[(tiles.tiles * lines.groups,)](
        x, weight, bias, residual, y, stats, *lines.arguments(tiles), lines.pools, problem.eps,
        FIXED=fixed, CENTRED=problem.centred, ACT=problem.act,
        SLOPE=problem.slope, POOLS=tiles.pools, VALUES=tiles.values,
        **launch_options(tiles.warps),
    )  # fmt: skip


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
    tiles = plan(lines, x.element_size(), BACKWARD)
    assert tiles is not None
    dx = torch.empty_like(x) if needs[0] else None
    dresidual = torch.empty_like(x) if needs[3] else None
    partials = None
    if needs[1] or needs[2]:
        partials = x.new_empty((2, tiles.parts, lines.width), dtype=torch.float32)
    _backward[(tiles.parts * lines.groups,)](
        dy, x, weight, bias, other, stats, dx, dresidual, partials, *lines.arguments(tiles),
        lines.pools, tiles.tiles, tiles.parts, OWN_STATS=own_stats,
        CENTRED=problem.centred, ACT=problem.act, SLOPE=problem.slope,
        FROM_OUTPUT=other_is_output, POOLS=tiles.pools, VALUES=tiles.values,
        **launch_options(tiles.warps),
    )  # fmt: skip
    return dx, *sums_of(partials, weight, bias, needs), dresidual


def sums_of(
    partials: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of γ and β from what each part of the tiles adds to them."""
    if partials is None:
        return None, None
    # In one order, as PyTorch sums without atomic additions.
    # Two tensors and not halves of one, which would share their version.
    dweight, dbias = partials[0].sum(0), partials[1].sum(0)
    return (
        dweight.to(weight.dtype).reshape(weight.shape) if needs[1] and weight is not None else None,
        dbias.to(bias.dtype).reshape(bias.shape) if needs[2] and bias is not None else None,
    )
