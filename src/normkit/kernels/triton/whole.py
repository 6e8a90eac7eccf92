"""Contiguous groups that fit into a tile: read once, and normalized as they lie in registers.

One program for each group. Where there are too few of them to fill a GPU, or they are larger,
:mod:`normkit.kernels.triton.runs` splits them.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from normkit.core.pools import as_ncs
from normkit.kernels.triton.elements import load, rstd_of
from normkit.kernels.triton.finish import finish_sums
from normkit.kernels.triton.geometry import Partials
from normkit.kernels.triton.problem import WARPS, Problem, launch_options
from normkit.kernels.triton.terms import ANY, dz_of, multiple, parameter, y_of

__all__ = ["backward", "fits_backward", "fits_forward", "forward", "moments"]

_FORWARD = 16384, 512
"""Values of a tile at most, and of a warp: 16 for each thread; 32 where 16 warps have them all."""

_BACKWARD = 4096, 256
"""The same where two inputs and their products are in registers."""


@triton.jit
def _tile(pool, members, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return the rows of a group, their mask, and its values' positions and mask."""
    row, col = tl.arange(0, ROWS), tl.arange(0, COLS)
    present = row < members
    at = pool.to(tl.int64) * members * cols + ((row * cols)[:, None] + col[None, :])
    return row, present, at, present[:, None] & (col < cols)[None, :]


@triton.jit(do_not_specialize=ANY)
def _forward(
    x, weight, bias, residual, y, stats, pools, groups, members, cols, eps,
    CENTRED: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    cols = multiple(cols, ALIGN)
    pool = tl.program_id(0)
    row, present, at, mask = _tile(pool, members, cols, ROWS, COLS)
    d = load(x + at, mask)
    size = members * cols
    mean = 0.0
    low = 0.0
    if CENTRED:
        mean = tl.sum(d) / size
        d = tl.where(mask, d - mean, 0.0)
        # What rounding took from the mean.
        low = tl.sum(d) / size
        d = tl.where(mask, d - low, 0.0)
    one = tl.arange(0, 1)
    var = tl.sum(d * d) / size + tl.zeros([1], tl.float32)
    rstd = rstd_of(var, eps)
    tl.store(stats + pool + one, mean + one * 0.0)
    tl.store(stats + pools + pool + one, low + one * 0.0)
    tl.store(stats + 2 * pools + pool + one, rstd)
    tl.store(stats + 3 * pools + pool + one, var)
    if y is not None:
        channel = pool % groups * members + row
        scale = rstd * parameter(weight, channel, present, 1.0)
        shift = parameter(bias, channel, present, 0.0)
        z = y_of(d, scale[:, None], shift[:, None], residual, at, mask, ACT, SLOPE)
        tl.store(y + at, z, mask)


@triton.jit(do_not_specialize=ANY)
def _backward(
    dy, x, weight, bias, other, stats, dx, dresidual, sums, pools, groups, members, cols, total,
    CENTRED: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    cols = multiple(cols, ALIGN)
    pool = tl.program_id(0)
    row, present, at, mask = _tile(pool, members, cols, ROWS, COLS)
    channel = pool % groups * members + row
    mean, low = tl.load(stats + pool), tl.load(stats + pools + pool)
    rstd = tl.load(stats + 2 * pools + pool)
    gamma = parameter(weight, channel, present, 1.0)
    shift = parameter(bias, channel, present, 0.0)[:, None]
    d = tl.where(mask, (load(x + at, mask) - mean) - low, 0.0)
    scale = (rstd * gamma)[:, None]
    dz = dz_of(dy, d, scale, shift, other, at, mask, ACT, SLOPE, FROM_OUTPUT)
    of_row, product_of_row = tl.sum(dz, 1), tl.sum(dz * d, 1)
    if sums is not None:
        to = sums + pool * members + row
        tl.store(to, of_row, present)
        tl.store(to + total, product_of_row, present)
    if dresidual is not None:
        tl.store(dresidual + at, dz, mask)
    if dx is not None:
        size = members * cols
        # Not rstd cubed, which float32 may not hold.
        g = dz * scale - d * (rstd * (rstd * (rstd * (tl.sum(product_of_row * gamma) / size))))
        if CENTRED:
            g -= rstd * (tl.sum(of_row * gamma) / size)
        tl.store(dx + at, g, mask)


def _plan(x: Tensor, problem: Problem, limits: tuple[int, int]) -> dict[str, Any] | None:
    """Return constants and options of a launch, or None where the groups are too large or few."""
    return _options(*as_ncs(x), problem.groups, *limits, WARPS)


@lru_cache(4096)
def _options(
    n: int, c: int, s: int, groups: int, most: int, of_warp: int, least: int
) -> dict[str, Any] | None:
    rows, cols = (triton.next_power_of_2(size) for size in (c // groups, s))
    warps = max(1, min(16, rows * cols // of_warp))
    if rows * cols > most or n * groups * warps < least:
        return None
    return {"ROWS": rows, "COLS": cols, "ALIGN": math.gcd(s, 16), **launch_options(warps)}


def fits_forward(x: Tensor, problem: Problem) -> bool:
    """Return whether the groups of contiguous ``x`` are for a forward pass of these kernels."""
    return _plan(x, problem, _FORWARD) is not None


def fits_backward(x: Tensor, problem: Problem) -> bool:
    """Return whether the groups of contiguous ``x`` are for a backward pass of these kernels."""
    return _plan(x, problem, _BACKWARD) is not None


def _launch(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor | None,
    problem: Problem,
) -> Tensor:
    n, c, s = as_ncs(x)
    plan, pools = _plan(x, problem, _FORWARD), n * problem.groups
    assert plan is not None
    stats = x.new_empty((4, pools), dtype=torch.float32)
    _forward[(pools,)](
        x, weight, bias, residual, y, stats, pools, problem.groups, c // problem.groups, s,
        problem.eps, CENTRED=problem.centred, ACT=problem.act,
        SLOPE=problem.slope, **plan,
    )  # fmt: skip
    return stats


def moments(x: Tensor, problem: Problem) -> Tensor:
    """Compute statistics (4, pools) of contiguous ``x``: mean, low, 1/√(σ² + ε), σ²."""
    return _launch(x, None, None, None, None, problem)


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    problem: Problem,
    fixed: None = None,
) -> tuple[Tensor, Tensor]:
    """Normalize contiguous ``x`` by its own moments; return the output and these (4, pools)."""
    assert fixed is None, "a group's moments are not remembered"
    y = torch.empty_like(x)
    return y, _launch(x, weight, bias, residual, y, problem)


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
    """Return the gradients of x, weight, bias and residual that ``needs`` marks."""
    assert own_stats, "a group's moments are not remembered"
    n, c, s = as_ncs(x)
    plan, pools, members = _plan(x, problem, _BACKWARD), n * problem.groups, c // problem.groups
    assert plan is not None
    wanted = False, needs[1] and weight is not None, needs[2] and bias is not None
    sums = x.new_empty((2, n * c), dtype=torch.float32) if any(wanted) else None
    dx = torch.empty_like(x) if needs[0] else None
    dresidual = torch.empty_like(x) if needs[3] else None
    _backward[(pools,)](
        dy, x, weight, bias, other, stats, dx, dresidual, sums, pools, problem.groups, members, s,
        n * c, CENTRED=problem.centred, ACT=problem.act, SLOPE=problem.slope,
        FROM_OUTPUT=other_is_output, **plan,
    )  # fmt: skip
    dweight = dbias = None
    if sums is not None:
        form = Partials(1, 1, n * c, members, 1, c, members * s)
        _, dweight, dbias = finish_sums(sums, form, problem, stats, weight, bias, wanted)
    return dx, dweight, dbias, dresidual
