r"""Tiles, programs and partial sums of the schedules over the batch and groups, from shapes alone.

Memory is read as a matrix, in one of two ways:

- *runs* (:mod:`~normkit.kernels.triton.runs`), contiguous input: the S values of a sample and
  channel are a row, so that all values of a row have the same coefficients;
- *columns* (:mod:`~normkit.kernels.triton.columns`), channels-last input: rows of W = C values. A
  contiguous input whose pools span samples and whose S is small has rows of W = C·S values, with S
  columns for each channel.

A program reduces a few tiles of this matrix and writes partial results, which a finishing kernel
merges (:mod:`~normkit.kernels.triton.finish`). Nothing here depends on the device, since how often
a sum is split decides its rounding.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from normkit.core.pools import Pool, as_ncs
from normkit.kernels.triton.problem import FILL, Problem, launch_options

__all__ = ["Columns", "Matrix", "Partials", "Runs", "Tiles", "blocks", "in_columns",
           "plan_columns", "plan_runs"]  # fmt: skip

TILE = 2048
"""Values of a tile, at most: 16 for each of 128 threads, so that two inputs and two sums of them
fit into the registers."""

LEAST = 256
"""Values of a tile where there are few, so that small tensors have enough programs too."""

WALK = 16
"""Tiles that one program reduces, at most. They are summed about the mean of the first, which is
then at most √16 standard deviations of the program's values from their mean."""

LINE = 64
"""Columns of a tile: 128 bytes of a 16-bit type, a line of the cache."""

LEAST_ROWS = 64
"""Rows that a program sums in each column where there are as many. Partial results are 32 bytes of
traffic for each column, against six bytes for each of its 16-bit values."""

SHORT = 32
"""S below which contiguous values of a channel no longer fill the 32-byte sectors of memory."""


class Tiles(NamedTuple):
    """Division of a matrix into tiles, and of tiles among programs.

    Args:
        rows, cols: size of a tile, powers of two.
        walk: tiles that a program reduces: along a row in runs, along a column in columns.
        splits: programs along that axis.
        blocks: programs along the other.
    """

    rows: int
    cols: int
    walk: int
    splits: int
    blocks: int

    @property
    def programs(self) -> int:
        """Programs of a unit or part."""
        return self.splits * self.blocks

    @property
    def warps(self) -> int:
        """Warps of a program, with 8 values or more for each thread."""
        return max(1, min(4, self.rows * self.cols // 256))


class Partials(NamedTuple):
    """Layout of partial results, (parts, splits, width): what the finishing kernels merge.

    Args:
        members: adjacent columns that make one pool; those of all splits are merged.
        spread: adjacent columns of one channel.
        size: values in a pool.
    """

    parts: int
    splits: int
    width: int
    members: int
    spread: int
    channels: int
    size: int

    @property
    def total(self) -> int:
        """Number of partial results of one kind."""
        return self.parts * self.splits * self.width

    @property
    def pools_of_part(self) -> int:
        """Pools in one part."""
        return self.width // self.members

    @property
    def pools(self) -> int:
        """Number of pools."""
        return self.parts * self.pools_of_part


class Matrix(NamedTuple):
    """Rows that a reduction of runs takes together: ``rows`` for each of ``units``.

    Row r of unit u is row ``u // inner * outer + u % inner + r * step`` of the input.
    """

    units: int
    inner: int
    outer: int
    step: int
    rows: int


class Runs(NamedTuple):
    """Plan of a contiguous input: two reductions, and the maps over all rows.

    Args:
        members: channels in a group, or 1.
        rows_of_part, pools_of_part: the pool of row r, channel c is
            ``r // rows_of_part * pools_of_part + c // members``.
        moments, sums: matrices of the forward and backward reduction, with their tiles and the
            layout of their partial results.
        by_row: the backward sums are those of each row, since γ differs within a pool.
        maps: tiles of the passes that write a result for each value.
    """

    rows: int
    cols: int
    channels: int
    members: int
    rows_of_part: int
    pools_of_part: int
    moments: tuple[Matrix, Tiles, Partials]
    sums: tuple[Matrix, Tiles, Partials]
    by_row: bool
    maps: Tiles

    def options(self, tiles: Tiles) -> dict[str, Any]:
        """Return constants and options of a launch."""
        return _options(tiles, self.cols)


class Columns(NamedTuple):
    """Plan of an input that is read by columns: ``parts`` matrices of ``rows`` × ``width``."""

    parts: int
    rows: int
    width: int
    tiles: Tiles
    partials: Partials

    def options(self, tiles: Tiles) -> dict[str, Any]:
        """Return constants and options of a launch."""
        return _options(tiles, self.width)


def blocks(size: int, block: int) -> int:
    """Return how many blocks cover ``size``."""
    return -(-size // block)


def _options(tiles: Tiles, row: int) -> dict[str, Any]:
    """Return the options of a launch, with a constant of which the length of a row is a multiple.

    A thread reads so many adjacent values at once.
    """
    sizes = {"BLOCK_R": tiles.rows, "BLOCK_C": tiles.cols, "ALIGN": math.gcd(row, 16)}
    return {**sizes, **launch_options(tiles.warps)}


def _power(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _tile(values: int) -> int:
    """Return the size of a tile such that there are :data:`FILL` of them, within the limits."""
    return max(LEAST, min(TILE, _power(values // FILL + 1) // 2))


def _fit(size: int, most: int) -> int:
    """Return the largest block that pads ``size`` by at most a quarter, or pads it least."""
    block = min(most, _power(size))
    choices = [block]
    while block > LINE:
        block //= 2
        choices.append(block)
    padded = [blocks(size, b) * b for b in choices]
    return next(
        (b for b, p in zip(choices, padded, strict=True) if 4 * p <= 5 * size),
        choices[padded.index(min(padded))],
    )


def _along_rows(units: int, rows: int, cols: int) -> Tiles:
    tile = _tile(units * rows * cols)
    block = _fit(cols, tile)
    of_rows = min(_power(rows), tile // block)
    tiles = blocks(cols, block)
    programs = units * blocks(rows, of_rows) * tiles
    walk = max(1, min(WALK, tiles, programs // FILL))
    return Tiles(of_rows, block, walk, blocks(tiles, walk), blocks(rows, of_rows))


def plan_runs(x: Tensor, problem: Problem) -> Runs:
    """Plan for contiguous ``x``, its pools over the batch, ghost batches or groups."""
    return _runs(*as_ncs(x), problem.pool)


@lru_cache(4096)
def _runs(n: int, c: int, s: int, pool: Pool) -> Runs:
    over, groups = pool.over, pool.groups
    size = pool.count(n, c, s)
    rows = n * c
    if over == "group":
        members = c // groups
        pools = Matrix(n * groups, 1, members, 1, members)
        rows_of_part, pools_of_part = c, groups
    else:
        parts = groups if over == "ghost" else 1
        members, rows_of_part, pools_of_part = 1, rows // parts, c
        pools = Matrix(parts * c, c, rows_of_part, c, n // parts)
    tiles = _along_rows(pools.units, pools.rows, s)
    # A pool's programs are its splits; its partial results lie a row of pools apart.
    partials = Partials(1, tiles.blocks * tiles.splits, pools.units, 1, 1, c, size)
    moments = sums = (pools, tiles, partials)
    every = _along_rows(1, rows, s)
    if over == "group":
        each = Partials(1, every.splits, rows, members, 1, c, size)
        sums = (Matrix(1, 1, 0, 1, rows), every, each)
    maps = every._replace(walk=1, splits=blocks(s, every.cols))
    return Runs(rows, s, c, members, rows_of_part, pools_of_part, moments, sums,
                over == "group", maps)  # fmt: skip


def plan_columns(x: Tensor, problem: Problem) -> Columns:
    """Plan for ``x`` channels-last, or contiguous with pools that span samples."""
    return _columns(*as_ncs(x), problem.pool, x.is_contiguous())


@lru_cache(4096)
def _columns(n: int, c: int, s: int, pool: Pool, contiguous: bool) -> Columns:
    spread = s if contiguous else 1
    parts = {"batch": 1, "ghost": pool.groups}.get(pool.over, n)
    rows, width = n * c * s // (parts * c * spread), c * spread
    block = min(LINE, _power(width))
    of_rows = min(_power(rows), TILE // block)
    programs = parts * blocks(width, block) * blocks(rows, of_rows)
    walk = max(blocks(LEAST_ROWS, of_rows), min(WALK, programs // FILL))
    walk = min(walk, blocks(rows, of_rows))
    splits = blocks(rows, of_rows * walk)
    members = c // pool.groups if pool.over == "group" else spread
    size = pool.count(n, c, s)
    return Columns(
        parts, rows, width,
        Tiles(of_rows, block, walk, splits, blocks(width, block)),
        Partials(parts, splits, width, members, spread, c, size),
    )  # fmt: skip


def in_columns(x: Tensor, problem: Problem) -> bool:
    """Return whether dense ``x`` is to be read by columns; otherwise by runs."""
    return not x.is_contiguous() or (problem.over != "group" and as_ncs(x)[2] < SHORT)
