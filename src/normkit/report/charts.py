"""Charts as the page's script wants them: which curve has which colour, sign and stroke.

An arm keeps its colour and sign over the whole page. Colour never stands alone: curves of one
chart differ by sign (circle, square, …) or by stroke as well. Published figures are dashed with
hollow signs, theory is dotted and has none.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from normkit.lab.findings import Chart, Line
from normkit.report.text import decimals

__all__ = ["COLOURS", "INK", "Key", "Numbers", "keys", "numbers", "palette", "spec"]

# How many arm colours the style sheet has (--arm-0 and on), and how many signs there are.
COLOURS = 8
# The colour of curves that belong to no arm: the text's own.
INK = -1

_DATA_DASHES = ("solid", "dashdot", "longdashdot", "6px,2px,1px,2px,1px,2px")
# Longer columns are read from the download, not from the page.
_TABLE_ROWS = 40
_TABLE_LINES = 12
_TICKS = 12


@dataclasses.dataclass(frozen=True)
class Key:
    """How one curve is drawn, for its entry in the legend and for the chart alike."""

    label: str
    colour: int
    sign: int
    dash: str
    hollow: bool
    role: str

    @property
    def published(self) -> bool:
        """Whether the label needs the word to say so."""
        return self.role == "published" and "publish" not in self.label.lower()

    @property
    def name(self) -> str:
        """The label where it stands alone, away from the legend."""
        return f"{self.label}, published" if self.published else self.label


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A chart as a table: one row for each x, one column for each curve."""

    columns: tuple[str, ...]
    rows: tuple[tuple[float | tuple[float | None, ...] | None, ...], ...]
    decimals: int | None


def arm(line: Line) -> str:
    """The name that decides the colour: the arm, or for a lone data curve its label."""
    return line.arm or (line.label if line.role == "data" else "")


def palette(charts: Iterable[Chart]) -> dict[str, int]:
    """A colour for each arm of a page, the same wherever the arm appears.

    Arms are served in the order in which they come up. Where there are more arms than colours,
    two share one only if no chart shows both, as far as that can be had.

    >>> bn, plain = (Line(name, (1.0,), (2.0,), arm=name) for name in ("BN", "plain"))
    >>> palette([Chart("loss", "Loss", "epoch", "loss", (bn, plain), "")])
    {'BN': 0, 'plain': 1}
    """
    together: dict[str, set[str]] = {}
    for chart in charts:
        names = {name: None for line in chart.lines if (name := arm(line))}
        for name in names:
            together.setdefault(name, set()).update(names)
    chosen: dict[str, int] = {}
    used: Counter[int] = Counter()
    for name, neighbours in together.items():
        taken = {chosen[other] for other in neighbours if other in chosen}
        free = [colour for colour in range(COLOURS) if colour not in taken]
        colour = min(free or range(COLOURS), key=lambda one: (used[one], one))
        chosen[name] = colour
        used[colour] += 1
    return chosen


def keys(chart: Chart, colours: dict[str, int]) -> list[Key]:
    """How each curve of a chart is drawn."""
    seen: Counter[tuple[str, str]] = Counter()
    made = []
    for line in chart.lines:
        name = arm(line)
        colour = colours.get(name, INK)
        nth = seen[name, line.role]
        seen[name, line.role] += 1
        dash = {"published": "dash", "theory": "dot"}.get(line.role)
        made.append(
            Key(
                label=line.label or name or line.role,
                colour=colour,
                # Several curves of one arm share its colour, so they part by sign and stroke.
                sign=(max(colour, 0) + nth) % COLOURS,
                dash=dash or _DATA_DASHES[nth % len(_DATA_DASHES)],
                hollow=line.role != "data",
                role=line.role,
            )
        )
    return made


def spec(chart: Chart, colours: dict[str, int]) -> dict[str, Any]:
    """The chart for the page's script; see ``templates/page.js`` for what it does with it."""
    values = (v for line in chart.lines for v in (*line.y, *line.low, *line.high))
    positive = [v for v in values if v is not None and 0 < v < math.inf]
    floor = min(positive, default=None) if chart.y_log else None
    return {
        "title": chart.title,
        "x": chart.x_label,
        "y": chart.y_label,
        "xlog": chart.x_log,
        "ylog": chart.y_log,
        "markers": chart.markers,
        "xticks": ticks(chart),
        "yticks": _log_ticks(positive) if chart.y_log else None,
        "lines": [
            {**dataclasses.asdict(key), "name": key.name, **_points(line, floor)}
            for line, key in zip(chart.lines, keys(chart, colours), strict=True)
        ],
    }


def ticks(chart: Chart) -> list[float] | None:
    """The measured places as marks on the axis, where there are few and they are round.

    Batch sizes and epochs are read off better at 2, 4, 8 than at 5 and 10.

    >>> line = Line("BN", (2.0, 8.0, 32.0), (1.0, 2.0, 3.0))
    >>> ticks(Chart("k", "t", "x", "y", (line,), "", x_log=True))
    [2, 8, 32]
    """
    places = sorted({x for line in chart.lines for x in line.x if math.isfinite(x)})
    if chart.x_log and (len(places) > _TICKS or not places or places[0] <= 0):
        return _log_ticks([x for x in places if x > 0])
    if not 1 <= len(places) <= _TICKS:
        return None
    if chart.x_log:
        return [_round(x) or 0 for x in places]
    steps = {b - a for a, b in itertools.pairwise(places)}
    even = all(float(x).is_integer() for x in places) and len(steps) <= 1
    return [int(x) for x in places] if even else None


def _log_ticks(values: Sequence[float]) -> list[float] | None:
    """Round places on a logarithmic axis, few enough to read; None leaves it to plotly.js."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    if high / low < 2:
        return None
    digits = (1,) if high / low > 1000 else (1, 2, 5) if high / low > 15 else (1, 2, 3, 4, 5, 7)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = 1 + len(decades) // 8
    return [digit * 10.0**decade for decade in decades[::every] for digit in digits]


def numbers(chart: Chart) -> Numbers | None:
    """The chart as a table, or None where it has too many points or curves to be read as one."""
    places = sorted({x for line in chart.lines for x in line.x if math.isfinite(x)})
    if not places or len(places) > _TABLE_ROWS or len(chart.lines) > _TABLE_LINES:
        return None
    found = [{x: tuple(cell) for x, *cell in _rows(line)} for line in chart.lines]
    return Numbers(
        columns=(chart.x_label, *(key.name for key in keys(chart, {}))),
        rows=tuple((x, *(cells.get(x) for cells in found)) for x in places),
        decimals=decimals(v for cells in found for cell in cells.values() for v in cell),
    )


def _rows(line: Line) -> list[tuple[float, float | None, float | None, float | None]]:
    def at(values: Sequence[float | None], index: int) -> float | None:
        value = values[index] if index < len(values) else None
        return value if value is not None and math.isfinite(value) else None

    return [
        (x, at(line.y, i), at(line.low, i), at(line.high, i))
        for i, x in enumerate(line.x)
        if math.isfinite(x)
    ]


def _points(line: Line, floor: float | None) -> dict[str, Any]:
    rows = _rows(line)
    banded = any(low is not None and high is not None for _, _, low, high in rows)

    def raised(value: float | None) -> float | None:
        # A band that reaches zero has no place on a logarithmic axis; it ends at the least point.
        return value if value is None or floor is None else max(value, floor)

    points: dict[str, Any] = {
        "at": [_round(x, 9) for x, *_ in rows],
        "value": [_round(y) for _, y, *_ in rows],
    }
    if banded:
        points["low"] = [_round(raised(low)) for *_, low, _ in rows]
        points["high"] = [_round(raised(high)) for *_, high in rows]
    return points


def _round(value: float | None, digits: int = 6) -> float | int | None:
    """No finer than a screen can show: the page's weight is mostly these digits."""
    if value is None:
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
