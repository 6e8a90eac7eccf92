r"""Pools whose values have one stride: where they lie, and how tiles and programs divide them.

Two kinds are the same to the kernels, which see tiles of pools × values and their strides:

- *rows*, adjacent values: groups of channels without space, positions in channels-last;
- *columns* of a sample, values S apart: positions of a contiguous tensor (N, C, S).

Nothing here depends on the device, since how often a sum is split decides its rounding.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from normkit.core.pools import as_ncs
from normkit.kernels.triton.geometry import WALK
from normkit.kernels.triton.problem import FILL, WARPS, Problem

__all__ = ["BACKWARD", "FORWARD", "Limits", "Lines", "Plan", "lines_of", "plan", "plan_long"]


class Limits(NamedTuple):
    """Registers that a pass needs for each value decide how large its tiles are.

    Args:
        most: values of the largest tile.
        short: values of a tile where pools are short.
        row, column: values for each thread, in rows and in columns. The more, the fewer
            instructions a value costs, of which threads that add up a pool together need many, in
            columns above all; the fewer, the more threads wait for memory at once.
        parts: programs are as many as parts, and not as tiles.
    """

    most: int
    short: int
    row: int
    column: int
    parts: bool


FORWARD = Limits(8192, 1024, 32, 32, False)
"""The input is in registers."""

BACKWARD = Limits(4096, 2048, 8, 16, True)
"""Two inputs, the residual and two sums are in registers.

Tests compile many tiles and refuse registers that are spilled.
"""

FEW = 8
"""Values for each thread where all threads together would leave the device idle."""

ALIGNED = 16
"""Triton knows of an argument whether this divides it; else a thread reads values one by one."""

LINE = 64
"""Bytes of adjacent pools that a tile of columns reads at least: two sectors of memory."""

LONG = 2048
"""Values of a tile of pools that are read in a loop."""

LEAST = 128
"""Programs of a backward pass at least, where there are as many tiles."""


class Lines(NamedTuple):
    """Layout of pools with one stride.

    Args:
        samples, inner: pools of a group are numbered by both; ``inner`` varies first.
        groups: groups of channels, for each of these pools.
        length: values of a pool.
        step: elements from one value of a pool to the next.
        pools_apart, values_apart: from one ``inner`` to the next, in pools and in elements.
    """

    samples: int
    inner: int
    groups: int
    length: int
    step: int
    pools_apart: int
    values_apart: int

    @property
    def pools(self) -> int:
        """Return the number of pools."""
        return self.samples * self.inner * self.groups

    @property
    def width(self) -> int:
        """Return the number of channels."""
        return self.groups * self.length

    def arguments(self, plan: Plan) -> tuple[int, ...]:
        """Return the arguments of the kernels that say where a tile lies."""
        return (
            self.groups, plan.blocks, self.inner, self.inner * self.pools_apart,
            self.inner * self.length if self.step > 1 else 0, self.pools_apart, self.values_apart,
            self.length, self.step,
        )  # fmt: skip


class Plan(NamedTuple):
    """Division of pools into tiles, and of tiles among programs.

    Args:
        pools, values: size of a tile, powers of two.
        blocks: tiles along ``Lines.inner``.
        tiles: tiles of a group.
        warps: groups of 32 threads of a program.
        parts: programs that share the tiles of a group in a backward pass.
        splits: programs that share a pool in a reduction.
        walk: values of a pool for each of these.
    """

    pools: int
    values: int
    blocks: int
    tiles: int
    warps: int
    parts: int
    splits: int = 1
    walk: int = 0


def lines_of(x: Tensor, problem: Problem) -> Lines:
    """Return where the pools of ``x`` lie: contiguous or channels-last, over group or position."""
    n, c, s = as_ncs(x)
    if problem.over == "position" and s > 1 and x.is_contiguous():
        return Lines(n, s, 1, c, s, 1, 1)
    rows = n * s if problem.over == "position" else n
    return Lines(1, rows, problem.groups, c // problem.groups, 1, problem.groups, c)


def plan(lines: Lines, itemsize: int, limits: Limits) -> Plan | None:
    """Divide pools into tiles that hold whole ones, or return None where these exceed the limits.

    >>> plan(Lines(1, 8192, 1, 768, 1, 1, 768), 2, FORWARD)
    Plan(pools=1, values=1024, blocks=8192, tiles=8192, warps=1, parts=256, splits=1, walk=0)
    >>> plan(Lines(1, 8, 1, 100_000, 1, 1, 100_000), 2, FORWARD)
    """
    values = _power(lines.length)
    least = _least(lines, itemsize)
    if least * values > limits.most:
        return None
    pools = min(max(limits.short // values, least), _power(lines.inner))
    while pools > least and _tiles(lines, pools) * lines.groups < FILL:
        pools //= 2
    each, tiles = _each(lines, limits), _tiles(lines, pools)
    programs = (_parts(lines, itemsize, tiles) if limits.parts else tiles) * lines.groups
    while each > FEW and programs * pools * values < WARPS * 32 * each:
        each //= 2
    return _plan(lines, itemsize, pools, values, each)


def plan_long(lines: Lines, itemsize: int) -> Plan:
    """Divide pools into tiles that hold a part of them.

    >>> plan_long(Lines(1, 8, 1, 100_000, 1, 1, 100_000), 2)
    Plan(pools=1, values=2048, blocks=8, tiles=8, warps=8, parts=8, splits=49, walk=2048)
    """
    pools = _least(lines, itemsize)
    values = min(LONG // pools, _power(lines.length))
    whole = _plan(lines, itemsize, pools, values, _each(lines, BACKWARD))
    turns = -(-lines.length // values)
    # No more than a pass about the mean of the first of them is exact for.
    walk = min(-(-turns // min(turns, max(FILL // (whole.tiles * lines.groups), 1))), WALK)
    return whole._replace(splits=-(-turns // walk), walk=walk * values)


def _plan(lines: Lines, itemsize: int, pools: int, values: int, each: int) -> Plan:
    tiles = _tiles(lines, pools)
    blocks = -(-lines.inner // pools)
    warps = min(max(pools * values // (32 * each), 1), 16)
    return Plan(pools, values, blocks, tiles, warps, _parts(lines, itemsize, tiles))


def _each(lines: Lines, limits: Limits) -> int:
    """Return how many values a thread has where threads suffice."""
    each = limits.row if lines.step == 1 else limits.column
    # Not aligned, values are read one by one: each has an address and a mask of its own.
    return each // 2 if lines.step == 1 and lines.length % ALIGNED else each


def _parts(lines: Lines, itemsize: int, tiles: int) -> int:
    # Each part writes a float32 sum for γ and one for β, of every channel. So few that these are
    # a sixteenth of what the pass reads, where that leaves enough.
    few = lines.samples * lines.inner * itemsize // 64
    return min(tiles, max(LEAST, min(few, FILL)))


def _least(lines: Lines, itemsize: int) -> int:
    return 1 if lines.step == 1 else min(LINE // itemsize, _power(lines.inner))


def _tiles(lines: Lines, pools: int) -> int:
    return lines.samples * -(-lines.inner // pools)


def _power(n: int) -> int:
    """Return the smallest power of two that is not smaller."""
    return 1 << (n - 1).bit_length()
