"""Axes of small pictures: where values lie, which are marked, and whose figures have room."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from normkit.report.ticks import linear

__all__ = [
    "HEIGHT", "LETTER", "WIDTH", "Mark", "Point", "Scale", "apart", "ends", "marks_of", "reach",
]  # fmt: skip

WIDTH, HEIGHT = 360.0, 190.0
"""Size of a picture, in its own units: about those of a screen."""

LETTER = 6.9
"""The mean width of a letter of a figure, rather too wide than too narrow."""

Point = tuple[float, float]
Mark = tuple[float, str]


@dataclasses.dataclass(frozen=True)
class Scale:
    """From values to places: linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value, at the edge if it lies beyond."""
        if self.log:
            value = math.log10(value) if value > 0 else self.low
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + max(0.0, min(1.0, share)) * (self.end - self.start), 1)

    def holds(self, value: float) -> bool:
        """Return True for a value within the axis."""
        if self.log and value <= 0:
            return False
        return self.low <= (math.log10(value) if self.log else value) <= self.high


def reach(lines: Sequence[Any], log: bool) -> Point:
    """Return the ends of the vertical axis: all values, and of bands what leaves them legible."""
    low, high = ends([v for line in lines for v in line["value"] if v is not None], log)
    bands = [v for line in lines for n in ("low", "high") for v in line.get(n, ()) if v is not None]
    room = (high - low) / 2 or math.inf
    least, most = ends(bands, log) if bands else (low, high)
    low, high = max(min(low, least), low - room), min(max(high, most), high + room)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def ends(values: Iterable[float], log: bool) -> Point:
    scaled = [math.log10(v) if log else v for v in values if not log or v > 0] or [0.0]
    return min(scaled), max(scaled)


def marks_of(chosen: list[float] | None, low: float, high: float, log: bool) -> list[float]:
    if chosen is not None:
        return chosen
    # Within a decade: round values, not round powers.
    return linear(10**low, 10**high) if log else linear(low, high)


def apart(marks: Sequence[Mark]) -> list[Mark]:
    """Keep those figures that have room beside each other."""
    shown: list[Mark] = []
    end = 0.0
    for place, words in sorted(marks):
        half = LETTER * len(words) / 2
        middle = min(place, WIDTH - half)
        if middle - half >= end:
            shown.append((middle, words))
            end = middle + half + 6
    return shown
