"""Channels-last inputs, and contiguous ones of few positions: a column has one channel.

The same passes as in :mod:`normkit.kernels.triton.runs`, with lanes along the channels: a program
walks down the rows and keeps sums for each of its columns.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from normkit.kernels.call import Running
from normkit.kernels.triton.elements import load
from normkit.kernels.triton.finish import finish_moments, finish_sums
from normkit.kernels.triton.geometry import Columns, plan_columns
from normkit.kernels.triton.problem import Problem
from normkit.kernels.triton.terms import (
    ANY,
    coefficients,
    dz_of,
    multiple,
    span,
    store_moments,
    y_of,
)

__all__ = ["backward", "forward", "moments"]


# Where a pool is a channel, a thread loads the coefficients of its columns together.
_NOT_ALIGNED = ["members", "spread"]
_NOT = [name for name in ANY if name not in ("pools", *_NOT_ALIGNED)]


@triton.jit
def _place(width, blocks, splits, walk, rows, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return a program's part, split and columns, where the part begins, and its first row."""
    pid = tl.program_id(0)
    split = pid // blocks % splits
    part = pid // blocks // splits
    column = pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    begin = part.to(tl.int64) * rows * width
    return part, split, column, begin, split.to(tl.int64) * walk * BLOCK_R


@triton.jit(do_not_specialize=_NOT, do_not_specialize_on_alignment=_NOT_ALIGNED)
def _moments(
    x, partials, rows, width, blocks, splits, walk, total, CENTRED: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    width = multiple(width, ALIGN)
    part, split, column, begin, first = _place(width, blocks, splits, walk, rows, BLOCK_R, BLOCK_C)
    present = column < width
    here = x + begin + column[None, :]
    row, inside, count = span(first, rows, BLOCK_R)
    mask = inside[:, None] & present[None, :]
    d = load(here + (row * width)[:, None], mask)
    if CENTRED:
        pivot = tl.sum(d, 0) / count
        d = tl.where(mask, d - pivot[None, :], 0.0)
    else:
        pivot = tl.zeros([BLOCK_C], tl.float32)
    dd = d * d
    for i in range(1, walk):
        row, inside, more = span(first + i * BLOCK_R, rows, BLOCK_R)
        mask = inside[:, None] & present[None, :]
        value = load(here + (row * width)[:, None], mask)
        if CENTRED:
            value = tl.where(mask, value - pivot[None, :], 0.0)
        d += value
        dd += value * value
        count += more
    rest = tl.sum(d, 0) if CENTRED else pivot
    at = partials + (part * splits + split) * width + column
    store_moments(at, total, count + column * 0, pivot, rest, tl.sum(dd, 0), present)


@triton.jit(do_not_specialize=_NOT, do_not_specialize_on_alignment=_NOT_ALIGNED)
def _normalize(
    x, residual, weight, bias, stats, y, pools, rows, width, blocks, splits, walk, members, spread,
    ACT: tl.constexpr, SLOPE: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    width = multiple(width, ALIGN)
    part, _, column, begin, first = _place(width, blocks, splits, walk, rows, BLOCK_R, BLOCK_C)
    present = column < width
    pool = part * (width // members) + column // members
    mean, low, scale, shift = coefficients(
        stats, weight, bias, pool, column // spread, pools, present
    )
    for i in range(walk):
        row, inside, _ = span(first + i * BLOCK_R, rows, BLOCK_R)
        at = (begin + row * width)[:, None] + column[None, :]
        mask = inside[:, None] & present[None, :]
        d = (load(x + at, mask) - mean[None, :]) - low[None, :]
        z = y_of(d, scale[None, :], shift[None, :], residual, at, mask, ACT, SLOPE)
        tl.store(y + at, z, mask)


@triton.jit(do_not_specialize=_NOT, do_not_specialize_on_alignment=_NOT_ALIGNED)
def _sums(
    dy, x, other, weight, bias, stats, sums, pools, rows, width, blocks, splits, walk, members,
    spread, total, ACT: tl.constexpr, SLOPE: tl.constexpr, FROM_OUTPUT: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    width = multiple(width, ALIGN)
    part, split, column, begin, first = _place(width, blocks, splits, walk, rows, BLOCK_R, BLOCK_C)
    present = column < width
    pool = part * (width // members) + column // members
    mean, low, scale, shift = coefficients(
        stats, weight, bias, pool, column // spread, pools, present
    )
    mean, low, scale, shift = mean[None, :], low[None, :], scale[None, :], shift[None, :]
    dz = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    dzx = dz
    for i in range(walk):
        row, inside, _ = span(first + i * BLOCK_R, rows, BLOCK_R)
        at = (begin + row * width)[:, None] + column[None, :]
        mask = inside[:, None] & present[None, :]
        d = tl.where(mask, (load(x + at, mask) - mean) - low, 0.0)
        g = dz_of(dy, d, scale, shift, other, at, mask, ACT, SLOPE, FROM_OUTPUT)
        dz += g
        dzx += g * d
    to = sums + (part * splits + split) * width + column
    tl.store(to, tl.sum(dz, 0), present)
    tl.store(to + total, tl.sum(dzx, 0), present)


@triton.jit(do_not_specialize=_NOT, do_not_specialize_on_alignment=_NOT_ALIGNED)
def _gradients(
    dy, x, other, weight, bias, stats, slopes, dx, dresidual, pools, rows, width, blocks, splits,
    walk, members, spread, ACT: tl.constexpr, SLOPE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    width = multiple(width, ALIGN)
    part, _, column, begin, first = _place(width, blocks, splits, walk, rows, BLOCK_R, BLOCK_C)
    present = column < width
    pool = part * (width // members) + column // members
    mean, low, scale, shift = coefficients(
        stats, weight, bias, pool, column // spread, pools, present
    )
    mean, low, scale, shift = mean[None, :], low[None, :], scale[None, :], shift[None, :]
    if slopes is not None:
        constant = load(slopes + pool, present)[None, :]
        slope_of_x = load(slopes + pools + pool, present)[None, :]
    for i in range(walk):
        row, inside, _ = span(first + i * BLOCK_R, rows, BLOCK_R)
        at = (begin + row * width)[:, None] + column[None, :]
        mask = inside[:, None] & present[None, :]
        d = (load(x + at, mask) - mean) - low
        dz = dz_of(dy, d, scale, shift, other, at, mask, ACT, SLOPE, FROM_OUTPUT)
        if dresidual is not None:
            tl.store(dresidual + at, dz, mask)
        if dx is not None:
            g = dz * scale
            # Fixed statistics pass no gradient on; not even a zero, as zero times infinity is NaN.
            if slopes is not None:
                g += d * slope_of_x + constant
            tl.store(dx + at, g, mask)


def _stats(x: Tensor, problem: Problem, plan: Columns, update: Running | None = None) -> Tensor:
    tiles, form = plan.tiles, plan.partials
    partials = x.new_empty((4, form.total), dtype=torch.float32)
    _moments[(plan.parts * tiles.programs,)](
        x, partials, plan.rows, plan.width, tiles.blocks, tiles.splits, tiles.walk, form.total,
        CENTRED=problem.centred, **plan.options(tiles),
    )  # fmt: skip
    return finish_moments(partials, form, problem, update)


def moments(x: Tensor, problem: Problem) -> Tensor:
    """Compute statistics (4, pools) of dense ``x``: mean, low, 1/√(σ² + ε), σ²."""
    return _stats(x, problem, plan_columns(x, problem))


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    problem: Problem,
    fixed: Tensor | None = None,
    update: Running | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalize dense ``x``; return the output and the statistics (4, pools).

    Args:
        fixed: statistics to normalize with.
        update: running mean and variance, and the share to move them by.
    """
    plan = plan_columns(x, problem)
    stats = _stats(x, problem, plan, update) if fixed is None else fixed
    y, tiles = torch.empty_like(x), plan.tiles
    _normalize[(plan.parts * tiles.programs,)](
        x, residual, weight, bias, stats, y, stats.shape[1], plan.rows, plan.width, tiles.blocks,
        tiles.splits, tiles.walk, plan.partials.members, plan.partials.spread,
        ACT=problem.act, SLOPE=problem.slope, **plan.options(tiles),
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
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, weight, bias and residual that ``needs`` marks.

    Args:
        other: the residual or, with ``other_is_output``, the output; None without an activation.
        own_stats: the statistics are those of ``x``, so that they have a gradient.
    """
    plan = plan_columns(x, problem)
    tiles, partials, grid = plan.tiles, plan.partials, (plan.parts * plan.tiles.programs,)
    common = {
        "ACT": problem.act, "SLOPE": problem.slope, "FROM_OUTPUT": other_is_output,
        **plan.options(tiles),
    }  # fmt: skip
    size = (stats.shape[1], plan.rows, plan.width, tiles.blocks, tiles.splits, tiles.walk,
            partials.members, partials.spread)  # fmt: skip
    slopes = dweight = dbias = None
    wanted = needs[0] and own_stats, needs[1] and weight is not None, needs[2] and bias is not None
    if any(wanted):
        sums = x.new_empty((2, partials.total), dtype=torch.float32)
        _sums[grid](dy, x, other, weight, bias, stats, sums, *size, partials.total, **common)
        slopes, dweight, dbias = finish_sums(sums, partials, problem, stats, weight, bias, wanted)
    dx = torch.empty_like(x) if needs[0] else None
    dresidual = torch.empty_like(x) if needs[3] else None
    if dx is not None or dresidual is not None:
        _gradients[grid](
            dy, x, other, weight, bias, stats, slopes, dx, dresidual, *size,
            **common,
        )  # fmt: skip
    return dx, dweight, dbias, dresidual
