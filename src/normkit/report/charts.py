"""Charts as the page's script wants them: which curve has which colour, sign and stroke.

An arm keeps its colour and sign over the whole page. Colour never stands alone: curves of one
chart differ by sign (circle, square, …) or by stroke as well. Published figures are dashed with
hollow signs, theory is dotted and has none.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from normkit.lab.findings import Chart, Line
from normkit.report.arms import ARMS
from normkit.report.text import decimals, shorten, tidy
from normkit.report.ticks import logarithmic, rounded, ticks

__all__ = ["COLOURS", "INK", "Key", "Numbers", "keys", "numbers", "palette", "spec"]

# How many arm colours the style sheet has (--arm-0 and on), and how many signs there are.
COLOURS = 8
# The colour of curves that belong to no arm: the text's own.
INK = -1

_DATA_DASHES = ("solid", "dashdot", "longdashdot", "6px,2px,1px,2px,1px,2px")
# Longer columns are read from the download, not from the page.
_TABLE_ROWS = 40
_TABLE_LINES = 12
# How far apart the dots of one row stand, in rows.
_APART = 0.24


@dataclasses.dataclass(frozen=True)
class Key:
    """The look of one curve, in the legend and in the chart."""

    label: str
    colour: int
    sign: int
    dash: str
    hollow: bool
    role: str
    # Whether a cross marks places at which it did not train.
    fails: bool = False
    # The words of the legend after the label.
    note: str = ""

    @property
    def published(self) -> bool:
        """True for a source's curve."""
        return self.role == "published"

    @property
    def aside(self) -> str:
        """The words of the legend after the label."""
        return ", ".join(filter(None, ("published" if self.published else "", self.note)))

    @property
    def name(self) -> str:
        """The label where it stands alone, away from the legend."""
        return f"{self.label}, published" if self.published else self.label

    @property
    def short(self) -> str:
        """The label at the end of the curve itself, where there is little room."""
        tail = ", publ." if self.published else ""
        return shorten(self.label, 34 - len(tail)) + tail


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value of a chart's table."""

    value: float | None
    low: float | None
    high: float | None
    failed: bool


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A chart as a table: a row for each x, or each name of a dot plot; a column for each curve."""

    columns: tuple[str, ...]
    rows: tuple[tuple[float | str, tuple[Cell | None, ...]], ...]
    decimals: int | None


def arm(line: Line) -> str:
    """The name that decides the colour: the arm, or for a lone data curve its label.

    >>> arm(Line("ours", (1.0,), (2.0,), arm="with BN")), arm(Line("ours", (1.0,), (2.0,)))
    ('with BN', 'ours')
    """
    return line.arm or (line.label if line.role == "data" else "")


def palette(charts: Iterable[Chart]) -> dict[str, int]:
    """A colour for each arm of a page, the same wherever the arm appears.

    The lab's arms have theirs on every page (:data:`normkit.report.arms.ARMS`). Others are served
    in the order in which they come up: two share a colour only if no chart shows both, as far as
    that can be had.

    >>> bn, other = (Line(name, (1.0,), (2.0,), arm=name) for name in ("with BN", "of mine"))
    >>> palette([Chart("loss", "Loss", "epoch", "loss", (bn, other), "")])
    {'with BN': 0, 'of mine': 2}
    """
    together: dict[str, set[str]] = {}
    for chart in charts:
        names = {name: None for line in chart.lines if (name := arm(line))}
        for name in names:
            together.setdefault(name, set()).update(names)
    chosen = {name: ARMS[name] for name in together if name in ARMS}
    used = Counter(chosen.values())
    # The two that stand in nearly every claim keep theirs to themselves where it can be had.
    reserved = {ARMS["with BN"], ARMS["without BN"]}
    for name, neighbours in together.items():
        if name in chosen:
            continue
        used_nearby = {chosen[other] for other in neighbours if other in chosen}
        free = [colour for colour in range(COLOURS) if colour not in used_nearby]
        colour = min(free or range(COLOURS), key=lambda one: (one in reserved, used[one], one))
        chosen[name] = colour
        used[colour] += 1
    return chosen


def keys(chart: Chart, colours: dict[str, int]) -> list[Key]:
    """Choose colour, sign and stroke of each curve of a chart."""
    uses: Counter[tuple[str, str]] = Counter()
    chosen = []
    for line in chart.lines:
        name = arm(line)
        colour = colours.get(name, INK)
        nth = uses[name, line.role]
        uses[name, line.role] += 1
        dash = {"published": "dash", "theory": "dot"}.get(line.role)
        chosen.append(
            Key(
                label=tidy(line.label or name or line.role),
                colour=colour,
                # Several curves of one arm share its colour, so they part by sign and stroke.
                sign=(max(colour, 0) + nth) % COLOURS,
                dash=dash or _DATA_DASHES[nth % len(_DATA_DASHES)],
                hollow=line.role != "data",
                role=line.role,
                fails=bool(line.failed),
                note=line.note,
            )
        )
    return chosen


def spec(chart: Chart, colours: dict[str, int]) -> dict[str, Any]:
    """The chart for the page's script; see ``templates/charts.js`` for what it does with it."""
    values = (v for line in chart.lines for v in (*line.y, *line.low, *line.high))
    positive = [v for v in values if v is not None and 0 < v < math.inf]
    floor = min(positive, default=None) if chart.y_log else None
    dots = chart.kind == "dots"
    return {
        "kind": chart.kind,
        "title": tidy(chart.title),
        "x": tidy(chart.x_label),
        "y": tidy(chart.y_label),
        "xlog": chart.x_log and not dots,
        "ylog": chart.y_log,
        "markers": chart.markers,
        "rows": list(map(tidy, chart.rows)),
        "xticks": None if dots else ticks(chart),
        "yticks": logarithmic(positive) if chart.y_log else None,
        "lines": [
            {
                **dataclasses.asdict(key),
                "name": key.name,
                "short": key.short,
                **_points(cells, floor),
                **({"place": place} if dots else {}),
            }
            for cells, key, place in zip(
                _cells(chart), keys(chart, colours), _places(chart), strict=True
            )
        ],
    }


def numbers(chart: Chart) -> Numbers | None:
    """The chart as a table, or None where it has too many points or curves to be read as one.

    None as well where a curve has two points at one x, of which a table would show one.
    """
    every = _cells(chart)
    rows = [dict(cells) for cells in every]
    places = sorted({x for cells in rows for x in cells})
    if not places or len(places) > _TABLE_ROWS or len(chart.lines) > _TABLE_LINES:
        return None
    if any(len(cells) < len(all_) for cells, all_ in zip(rows, every, strict=True)):
        return None
    return Numbers(
        columns=(chart.x_label, *(key.name for key in keys(chart, {}))),
        rows=tuple(
            (
                tidy(chart.rows[int(x)]) if chart.kind == "dots" else x,
                tuple(cells.get(x) for cells in rows),
            )
            for x in places
        ),
        decimals=decimals(
            value
            for cells in rows
            for cell in cells.values()
            for value in (cell.value, cell.low, cell.high)
        ),
    )


def _cells(chart: Chart) -> list[list[tuple[float, Cell]]]:
    """Each curve's points by their place, as far as they have one in the chart."""

    def known(x: float) -> bool:
        return math.isfinite(x) and (chart.kind == "line" or x in range(len(chart.rows)))

    def at(values: Sequence[float | None], index: int) -> float | None:
        value = values[index] if index < len(values) else None
        return value if value is not None and math.isfinite(value) else None

    return [
        [
            (x, Cell(at(line.y, i), at(line.low, i), at(line.high, i), x in line.failed))
            for i, x in enumerate(line.x)
            if known(x)
        ]
        for line in chart.lines
    ]


def _places(chart: Chart) -> list[list[float]]:
    """Place the dots of each line: several in one row, one below the other."""
    positions = [[x for x, _ in cells] for cells in _cells(chart)]
    count = Counter(x for places in positions for x in places)
    placed: Counter[float] = Counter()
    shifted = []
    for places in positions:
        shifted.append([round(x + (placed[x] - (count[x] - 1) / 2) * _APART, 3) for x in places])
        placed.update(places)
    return shifted


def _points(cells: Sequence[tuple[float, Cell]], floor: float | None) -> dict[str, Any]:
    def raised(value: float | None) -> float | None:
        # A band that reaches zero has no place on a logarithmic axis; it ends at the least point.
        return value if value is None or floor is None else max(value, floor)

    points: dict[str, Any] = {
        "at": [rounded(x, 9) for x, _ in cells],
        "value": [rounded(cell.value) for _, cell in cells],
    }
    if any(cell.low is not None and cell.high is not None for _, cell in cells):
        points["low"] = [rounded(raised(cell.low)) for _, cell in cells]
        points["high"] = [rounded(raised(cell.high)) for _, cell in cells]
    failed = [index for index, (_, cell) in enumerate(cells) if cell.failed]
    return {**points, "failed": failed} if failed else points
