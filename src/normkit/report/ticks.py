"""Tick marks of an axis, and the digits that a screen can show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from normkit.lab.findings import Chart

__all__ = ["linear", "logarithmic", "rounded", "ticks"]

_TICKS = 12


def ticks(chart: Chart) -> list[float] | None:
    """The measured places as marks on the axis, where there are few and they are round.

    Batch sizes and epochs are read off better at 2, 4, 8 than at 5 and 10.

    >>> from normkit.lab.findings import Line
    >>> line = Line("BN", (2.0, 8.0, 32.0), (1.0, 2.0, 3.0))
    >>> ticks(Chart("k", "t", "x", "y", (line,), "", x_log=True))
    [2, 8, 32]
    """
    places = sorted({x for line in chart.lines for x in line.x if math.isfinite(x)})
    if chart.x_log and (len(places) > _TICKS or not places or places[0] <= 0):
        return logarithmic([x for x in places if x > 0])
    if not 1 <= len(places) <= _TICKS:
        return None
    if chart.x_log:
        return [rounded(x) or 0 for x in places]
    steps = {b - a for a, b in itertools.pairwise(places)}
    even = all(float(x).is_integer() for x in places) and len(steps) <= 1
    return [int(x) for x in places] if even else None


def logarithmic(values: Sequence[float]) -> list[float] | None:
    """Round places on a logarithmic axis, few enough to read; None leaves it to plotly.js."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    if high / low < 2:
        return None
    digits = (1,) if high / low > 1000 else (1, 2, 5) if high / low > 15 else (1, 2, 3, 4, 5, 7)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = 1 + len(decades) // 8
    return [digit * 10.0**decade for decade in decades[::every] for digit in digits]


def rounded(value: float | None, digits: int = 6) -> float | int | None:
    """No finer than a screen can show: the page's weight is mostly these digits."""
    if value is None:
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def linear(low: float, high: float, count: int = 4) -> list[float]:
    """Round places within a linear axis, about ``count`` of them.

    >>> linear(0.3, 9.7), linear(-0.02, 0.05)
    ([2, 4, 6, 8], [-0.02, 0, 0.02, 0.04])
    """
    width = (high - low) / count
    if not (width > 0 and math.isfinite(width)):
        return []
    power = 10.0 ** math.floor(math.log10(width))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.7 * width)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [rounded(index * step) or 0 for index in range(first, last + 1)]
