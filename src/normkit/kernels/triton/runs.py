"""Contiguous inputs: a row is the S values of a sample and channel.

Each reduction sums the tiles of a program in registers and writes partial results, which
:mod:`normkit.kernels.triton.finish` merges; a second pass over the data writes the results.
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
from normkit.kernels.triton.geometry import Runs, plan_runs
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


@triton.jit
def begin_of(unit, row, inner, outer, step, cols):
    """Return where the rows of a unit begin."""
    return (unit // inner * outer + unit % inner + row * step).to(tl.int64) * cols


@triton.jit(do_not_specialize=ANY)
def _moments(
    x, partials, units, inner, outer, step, rows, cols, splits, walk, total,
    CENTRED: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    cols = multiple(cols, ALIGN)
    pid = tl.program_id(0)
    split = pid % splits
    unit = pid // splits % units
    block = pid // splits // units
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    begin = begin_of(unit, row, inner, outer, step, cols)
    present = row < rows
    down = tl.minimum(rows - block * BLOCK_R, BLOCK_R)
    first = split.to(tl.int64) * walk
    offset, inside, across = span(first * BLOCK_C, cols, BLOCK_C)
    mask = present[:, None] & inside[None, :]
    d = load(x + begin[:, None] + offset[None, :], mask)
    pivot = 0.0
    if CENTRED:
        pivot = tl.sum(d) / (down * across)
        d = tl.where(mask, d - pivot, 0.0)
    dd = d * d
    for i in range(1, walk):
        offset, inside, more = span((first + i) * BLOCK_C, cols, BLOCK_C)
        mask = present[:, None] & inside[None, :]
        value = load(x + begin[:, None] + offset[None, :], mask)
        if CENTRED:
            value = tl.where(mask, value - pivot, 0.0)
        d += value
        dd += value * value
        across += more
    at = partials + (block * splits + split) * units + unit
    store_moments(at, total, down * across, pivot, tl.sum(d) if CENTRED else 0.0, tl.sum(dd), None)


@triton.jit(do_not_specialize=ANY)
def _normalize(
    x, residual, weight, bias, stats, y, pools, rows, cols, splits, channels, members,
    rows_of_part, pools_of_part, ACT: tl.constexpr, SLOPE: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    cols = multiple(cols, ALIGN)
    pid = tl.program_id(0)
    row = pid // splits * BLOCK_R + tl.arange(0, BLOCK_R)
    present = row < rows
    channel = row % channels
    pool = row // rows_of_part * pools_of_part + channel // members
    mean, low, scale, shift = coefficients(stats, weight, bias, pool, channel, pools, present)
    offset, inside, _ = span((pid % splits).to(tl.int64) * BLOCK_C, cols, BLOCK_C)
    at = (row.to(tl.int64) * cols)[:, None] + offset[None, :]
    mask = present[:, None] & inside[None, :]
    d = (load(x + at, mask) - mean[:, None]) - low[:, None]
    z = y_of(d, scale[:, None], shift[:, None], residual, at, mask, ACT, SLOPE)
    tl.store(y + at, z, mask)


@triton.jit(do_not_specialize=ANY)
def _sums(
    dy, x, other, weight, bias, stats, sums, pools, units, inner, outer, step, rows, cols, splits,
    walk, channels, members, total, BY_ROW: tl.constexpr, ACT: tl.constexpr,
    SLOPE: tl.constexpr, FROM_OUTPUT: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    cols = multiple(cols, ALIGN)
    pid = tl.program_id(0)
    split = pid % splits
    unit = pid // splits % units
    block = pid // splits // units
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    begin = begin_of(unit, row, inner, outer, step, cols)
    present = row < rows
    if BY_ROW:
        pool = row // members
        channel = row % channels
    else:
        pool = unit + row * 0
        channel = unit % channels + row * 0
    mean, low, scale, shift = coefficients(stats, weight, bias, pool, channel, pools, present)
    mean, low, scale, shift = mean[:, None], low[:, None], scale[:, None], shift[:, None]
    dz = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    dzx = dz
    first = split.to(tl.int64) * walk
    for i in range(walk):
        offset, inside, _ = span((first + i) * BLOCK_C, cols, BLOCK_C)
        at = begin[:, None] + offset[None, :]
        mask = present[:, None] & inside[None, :]
        d = tl.where(mask, (load(x + at, mask) - mean) - low, 0.0)
        g = dz_of(dy, d, scale, shift, other, at, mask, ACT, SLOPE, FROM_OUTPUT)
        dz += g
        dzx += g * d
    if BY_ROW:
        to = sums + split * rows + row
        tl.store(to, tl.sum(dz, 1), present)
        tl.store(to + total, tl.sum(dzx, 1), present)
    else:
        to = sums + (block * splits + split) * units + unit
        tl.store(to, tl.sum(dz))
        tl.store(to + total, tl.sum(dzx))


@triton.jit(do_not_specialize=ANY)
def _gradients(
    dy, x, other, weight, bias, stats, slopes, dx, dresidual, pools, rows, cols, splits, channels,
    members, rows_of_part, pools_of_part, ACT: tl.constexpr, SLOPE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    cols = multiple(cols, ALIGN)
    pid = tl.program_id(0)
    row = pid // splits * BLOCK_R + tl.arange(0, BLOCK_R)
    present = row < rows
    channel = row % channels
    pool = row // rows_of_part * pools_of_part + channel // members
    mean, low, scale, shift = coefficients(stats, weight, bias, pool, channel, pools, present)
    offset, inside, _ = span((pid % splits).to(tl.int64) * BLOCK_C, cols, BLOCK_C)
    at = (row.to(tl.int64) * cols)[:, None] + offset[None, :]
    mask = present[:, None] & inside[None, :]
    d = (load(x + at, mask) - mean[:, None]) - low[:, None]
    dz = dz_of(dy, d, scale[:, None], shift[:, None], other, at, mask, ACT, SLOPE, FROM_OUTPUT)
    if dresidual is not None:
        tl.store(dresidual + at, dz, mask)
    if dx is not None:
        g = dz * scale[:, None]
        # Fixed statistics pass no gradient on; not even a zero, as zero times infinity is NaN.
        if slopes is not None:
            constant = load(slopes + pool, present)
            g += d * load(slopes + pools + pool, present)[:, None] + constant[:, None]
        tl.store(dx + at, g, mask)


def _stats(x: Tensor, problem: Problem, plan: Runs, update: Running | None = None) -> Tensor:
    matrix, tiles, form = plan.moments
    partials = x.new_empty((4, form.total), dtype=torch.float32)
    _moments[(matrix.units * tiles.programs,)](
        x, partials, *matrix, plan.cols, tiles.splits, tiles.walk, form.total,
        CENTRED=problem.centred, **plan.options(tiles),
    )  # fmt: skip
    return finish_moments(partials, form, problem, update)


def moments(x: Tensor, problem: Problem) -> Tensor:
    """Compute statistics (4, pools) of contiguous ``x``: mean, low, 1/√(σ² + ε), σ²."""
    return _stats(x, problem, plan_runs(x, problem))


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    problem: Problem,
    fixed: Tensor | None = None,
    update: Running | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalize contiguous ``x``; return the output and the statistics (4, pools).

    Args:
        fixed: statistics to normalize with.
        update: running mean and variance, and the share to move them by.
    """
    plan = plan_runs(x, problem)
    stats = _stats(x, problem, plan, update) if fixed is None else fixed
    y, tiles = torch.empty_like(x), plan.maps
    _normalize[(tiles.programs,)](
        x, residual, weight, bias, stats, y, stats.shape[1], plan.rows, plan.cols, tiles.splits,
        plan.channels, plan.members, plan.rows_of_part, plan.pools_of_part,
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
    plan = plan_runs(x, problem)
    act = {"ACT": problem.act, "SLOPE": problem.slope, "FROM_OUTPUT": other_is_output}
    slopes = dweight = dbias = None
    wanted = needs[0] and own_stats, needs[1] and weight is not None, needs[2] and bias is not None
    if any(wanted):
        matrix, tiles, form = plan.sums
        sums = x.new_empty((2, form.total), dtype=torch.float32)
        _sums[(matrix.units * tiles.programs,)](
            dy, x, other, weight, bias, stats, sums, stats.shape[1], *matrix, plan.cols,
            tiles.splits, tiles.walk, plan.channels, plan.members, form.total,
            BY_ROW=plan.by_row, **act, **plan.options(tiles),
        )  # fmt: skip
        slopes, dweight, dbias = finish_sums(sums, form, problem, stats, weight, bias, wanted)
    dx = torch.empty_like(x) if needs[0] else None
    dresidual = torch.empty_like(x) if needs[3] else None
    if dx is not None or dresidual is not None:
        tiles = plan.maps
        _gradients[(tiles.programs,)](
            dy, x, other, weight, bias, stats, slopes, dx, dresidual, stats.shape[1], plan.rows,
            plan.cols, tiles.splits, plan.channels, plan.members, plan.rows_of_part,
            plan.pools_of_part, **act, **plan.options(tiles),
        )  # fmt: skip
    return dx, dweight, dbias, dresidual
