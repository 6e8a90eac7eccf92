"""Units in which stored numbers are printed."""

from __future__ import annotations

import dataclasses
import math

__all__ = [
    "DB",
    "DECADES",
    "HALVINGS",
    "MAGNITUDE",
    "NATS",
    "NUMBER",
    "PERCENT",
    "POINTS",
    "UNKNOWN",
    "Unit",
    "decimal",
]

UNKNOWN = "not yet known"
"""Of a value without a measurement; no sentence is printed that has it."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A printed value is the stored one times ``scale``, in ``name``; a difference, in
    ``difference``.

    ``digits`` are the decimals of a table's cell; a sentence or a chart's text has one less. No
    stored value lies outside ``least`` and ``most``, nor does the end of an interval; differences
    have no such bounds.

    >>> PERCENT.cell(0.87654), PERCENT.text(0.87654), PERCENT.apart
    (87.65, '87.7 %', 'points')
    """

    name: str
    scale: float = 1.0
    digits: int = 4
    difference: str = ""
    least: float = -math.inf
    most: float = math.inf

    @property
    def of_difference(self) -> Unit:
        """Return the unit of a difference as a unit of its own."""
        return dataclasses.replace(self, name=self.apart, least=-math.inf, most=math.inf)

    def within(self, value: float) -> float:
        """Return the nearest value that there can be."""
        return min(max(value, self.least), self.most)

    @property
    def apart(self) -> str:
        """Return the unit of a difference of two values."""
        return self.difference or self.name

    def cell(self, value: float | None, digits: int | None = None) -> float | None:
        """Return the printed value, rounded for a table."""
        places = self.digits if digits is None else digits
        return None if value is None else round(self.scale * value, places)

    def text(self, value: float | None, digits: int | None = None) -> str:
        """Return the printed value with its unit, for a sentence."""
        if value is None:
            return UNKNOWN
        places = self.digits - 1 if digits is None else digits
        return f"{decimal(self.scale * value, places)} {self.name}".rstrip()

    def label(self, what: str) -> str:
        """Return the name of an axis or a column.

        >>> PERCENT.label("test accuracy"), NUMBER.label("batch size")
        ('test accuracy, %', 'batch size')
        """
        return f"{what}, {self.name}" if self.name else what


def decimal(value: float, places: int) -> str:
    """Return a number with so many decimals; in words or as a sign where it is not finite.

    >>> decimal(-2 / 3, 2), decimal(float("-inf"), 2), decimal(float("nan"), 2)
    ('−0.67', '−∞', 'unknown')
    """
    if math.isnan(value):
        return "unknown"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{places}f}".replace("-", "−")


PERCENT = Unit("%", 100, digits=2, difference="points", least=0.0, most=1.0)
POINTS = Unit("points", 100, digits=3)
"""Of accuracies, for a value that is itself a difference or a spread."""
NATS = Unit("nats", least=0.0)
DB = Unit("dB", digits=3)
DECADES = Unit("decades")
HALVINGS = Unit("halvings")
NUMBER = Unit("")
MAGNITUDE = Unit("", least=0.0)
"""Of a number that cannot be negative, such as a distance or a standard deviation."""
