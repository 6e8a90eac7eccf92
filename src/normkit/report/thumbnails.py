"""Charts as small pictures for cards: places of lines, marks and figures; a template prints them.

Drawn here and not by the page's script, so a wall of them opens at once, prints, and needs no
script. A small picture has the first few curves of ours and leaves published ones to the chart
itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from normkit.lab.findings import Chart
from normkit.report import charts
from normkit.report.scales import (
    HEIGHT,
    LETTER,
    WIDTH,
    Mark,
    Point,
    Scale,
    apart,
    ends,
    marks_of,
    reach,
)
from normkit.report.text import number

__all__ = ["HEIGHT", "WIDTH", "Curve", "Thumbnail", "thumbnail"]

CURVES = 4
"""Curves that a small picture has room for."""

ROWS = 6

_NAMES = 19  # letters of a row's name in one line
_MARKED = 12  # points of a curve up to which each has a mark


@dataclasses.dataclass(frozen=True)
class Curve:
    """One curve: its look, and where it goes; paths are of SVG."""

    key: charts.Key
    line: str
    band: str
    marks: tuple[Point, ...]
    crosses: tuple[Point, ...]


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A chart as a small picture.

    ``across`` and ``up`` are the marks of the axes, with their words in lines; ``inset`` is where
    the plot begins; ``omitted`` how many of the chart's curves it leaves out; ``zero`` the place of
    zero in a dot plot.
    """

    chart: Chart
    curves: tuple[Curve, ...]
    across: tuple[Mark, ...]
    up: tuple[tuple[float, tuple[str, ...]], ...]
    inset: float
    bottom: float
    omitted: int
    zero: float | None = None

    @property
    def legend(self) -> bool:
        """True if the curves need names: rows are names, where each has one curve."""
        if self.chart.kind == "dots":
            return sum(len(curve.marks) for curve in self.curves) > len(self.up)
        return len(self.curves) > 1


def thumbnail(chart: Chart, colours: dict[str, int]) -> Thumbnail | None:
    """Draw a chart small, or return None where it has no value to draw.

    >>> from normkit.lab.findings import Line
    >>> line = Line("with BN", (1.0, 2.0), (80.0, 90.0), arm="with BN")
    >>> small = thumbnail(Chart("k", "t", "epoch", "accuracy", (line,), ""), {"with BN": 0})
    >>> small.curves[0].line
    'M34 161.4L339.8 17.6'
    """
    data = [line for line in chart.lines if line.role == "data"]
    if chart.kind == "line":
        data = data[:CURVES]
    theory = [line for line in chart.lines if line.role == "theory"][:1]
    small = dataclasses.replace(chart, lines=(*data, *theory) if data else chart.lines[:CURVES])
    spec = charts.spec(small, colours)
    if not any(value is not None for line in spec["lines"] for value in line["value"]):
        return None
    omitted = sum(line.role != "theory" for line in chart.lines) - len(data or small.lines)
    keys = charts.keys(small, colours)
    return (_dots if chart.kind == "dots" else _lines)(small, spec, keys, omitted)


def _lines(chart: Chart, spec: Any, keys: list[charts.Key], omitted: int) -> Thumbnail:
    log_x, log_y = spec["xlog"], spec["ylog"]
    low, high = reach(spec["lines"], log_y)
    bottom = HEIGHT - 20
    y = Scale(low, high, bottom, 9, log_y)
    ticks = [tick for tick in marks_of(spec["yticks"], low, high, log_y) if y.holds(tick)]
    inset = 8 + LETTER * max((len(_figure(tick)) for tick in ticks), default=1)
    places = [x for line in spec["lines"] for x in line["at"]]
    first, last = ends(places, log_x)
    margin = 0.04 * (last - first) or 0.5
    x = Scale(first - margin, last + margin, inset, WIDTH - 8, log_x)
    marks = marks_of(spec["xticks"], x.low, x.high, log_x)
    # A mark at the very edge has its figure within the picture.
    across = apart([(x.at(tick), _figure(tick)) for tick in marks if x.holds(tick)])
    return Thumbnail(
        chart=chart,
        curves=tuple(
            _curve(key, line, x, y) for key, line in zip(keys, spec["lines"], strict=True)
        ),
        across=tuple(across),
        up=tuple((y.at(tick), (_figure(tick),)) for tick in ticks),
        inset=round(inset, 1),
        bottom=bottom,
        omitted=omitted,
    )


def _curve(key: charts.Key, line: Any, x: Scale, y: Scale) -> Curve:
    known = [
        (x.at(at), y.at(value))
        for at, value in zip(line["at"], line["value"], strict=True)
        if value is not None and not (x.log and at <= 0)
    ]
    edges = [
        (x.at(at), y.at(low), y.at(high))
        for at, low, high in zip(
            line["at"], line.get("low", ()), line.get("high", ()), strict=False
        )
        if low is not None and high is not None
    ]
    around = [(at, low) for at, low, _ in edges] + [(at, high) for at, _, high in reversed(edges)]
    failed = set(line.get("failed", ()))
    crosses = [
        (x.at(at), 9.0 if value is None else y.at(value))
        for i, (at, value) in enumerate(zip(line["at"], line["value"], strict=True))
        if i in failed
    ]
    marked = key.role != "theory" and len(known) <= _MARKED
    return Curve(
        key=key,
        line=_path(known),
        band=f"{_path(around)}Z" if edges else "",
        marks=tuple(known) if marked else (),
        crosses=tuple(crosses),
    )


def _dots(chart: Chart, spec: Any, keys: list[charts.Key], omitted: int) -> Thumbnail:
    rows = spec["rows"][:ROWS]
    names = [_wrapped(row) for row in rows]
    inset = 10 + LETTER * max(len(part) for name in names for part in name)
    values = [
        value
        for line in spec["lines"]
        for name in ("value", "low", "high")
        for value in line.get(name, ())
        if value is not None
    ]
    log = spec["ylog"]
    first, last = ends(values, log)
    margin = 0.06 * (last - first) or 0.5
    bottom = HEIGHT - 20
    x = Scale(first - margin, last + margin, inset, WIDTH - 8, log)
    step = (bottom - 4) / len(rows)

    def y(place: float) -> float:
        return round(4 + (place + 0.5) * step, 1)

    curves = []
    for key, line in zip(keys, spec["lines"], strict=True):
        shown = [i for i, row in enumerate(line["at"]) if row < len(rows)]
        marks = [
            (x.at(line["value"][i]), y(line["place"][i]))
            for i in shown
            if line["value"][i] is not None
        ]
        spans = "".join(
            f"M{x.at(line['low'][i])} {y(line['place'][i])}H{x.at(line['high'][i])}"
            for i in shown
            if "low" in line and line["low"][i] is not None and line["high"][i] is not None
        )
        lost = [i for i in shown if i in line.get("failed", ())]
        crosses = [
            (
                WIDTH - 14 if line["value"][i] is None else x.at(line["value"][i]),
                y(line["place"][i]),
            )
            for i in lost
        ]
        curves.append(Curve(key, spans, "", tuple(marks), tuple(crosses)))
    ticks = [tick for tick in marks_of(spec["yticks"], x.low, x.high, log) if x.holds(tick)]
    return Thumbnail(
        chart=chart,
        curves=tuple(curves),
        across=tuple(apart([(x.at(tick), _figure(tick)) for tick in ticks])),
        up=tuple((y(i), name) for i, name in enumerate(names)),
        inset=round(inset, 1),
        bottom=bottom,
        omitted=omitted,
        zero=x.at(0.0) if not log and x.holds(0.0) else None,
    )


def _figure(tick: float) -> str:
    """Return the figure at a mark; a power of ten without its factor of one."""
    return number(tick).replace("1×10", "10")


def _path(points: Sequence[Point]) -> str:
    return "".join(f"{'L' if i else 'M'}{x:g} {y:g}" for i, (x, y) in enumerate(points))


def _wrapped(words: str) -> tuple[str, ...]:
    """Break a row's name between words; nothing of it is cut."""
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > _NAMES:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return tuple(lines)
