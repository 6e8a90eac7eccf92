"""Effects with their intervals: the words beside the picture, and where the picture's marks go."""

from __future__ import annotations

import dataclasses
import math

from normkit.lab.findings import Comparison
from normkit.report.text import number

__all__ = ["EXAMPLES", "HALF", "Interval", "interval", "limits", "remark"]

# Half the width of the little picture, in its own units; zero lies in the middle.
HALF = 70.0


@dataclasses.dataclass(frozen=True)
class Interval:
    """One comparison, ready to print.

    ``dot``, ``low`` and ``high`` are horizontal places in the picture, None where there is
    nothing to draw. ``open_low`` and ``open_high`` say that the whisker runs out of the picture.
    ``matters`` is where the smallest effect that matters is marked, and minus it on the other
    side; ``margin`` is the place of minus the margin. None where there is none.
    """

    effect: str
    bounds: str
    dot: float | None
    low: float | None
    high: float | None
    open_low: bool = False
    open_high: bool = False
    matters: float | None = None
    margin: float | None = None


def _reach(comparison: Comparison) -> float:
    """Return the value at the edge of the picture."""
    one = comparison
    ends = (one.effect, one.low, one.high, one.smallest, one.margin)
    # A whisker without an end needs room to be seen as one.
    room = 1.6 if math.isinf(one.low) or math.isinf(one.high) else 1.0
    return room * max((abs(end) for end in ends if math.isfinite(end)), default=0.0)


def interval(comparison: Comparison) -> Interval:
    """Words and places for one comparison, which fills its picture.

    A scale for all effects of a claim would leave most of them a dot on zero: those of one unit
    differ by a factor of a hundred. What their words hang on is each interval beside its own marks.

    >>> shown = interval(Comparison("?", "points", 1.834, 1.5, 2.168, 10, "confirmed"))
    >>> shown.effect, shown.bounds
    ('+1.83', '+1.50 to +2.17')
    >>> interval(Comparison("?", "%", 92.7, 92.7, 92.7, 5, "confirmed")).bounds
    ''
    >>> interval(Comparison("?", "points", float("nan"), 0.0, 0.0, 0, "open")).dot is None
    True
    """
    effect, low, high = comparison.effect, comparison.low, comparison.high
    scale = _reach(comparison)
    decimals = comparison.decimals

    def text(value: float) -> str:
        return number(value, decimals=decimals, signed=True)

    # What chance does not touch, such as a number of parameters, has no interval.
    bounded = not (math.isnan(low) or math.isnan(high) or low == high)
    words = f"{text(low)} to {text(high)}" if bounded else ""
    if not math.isfinite(effect):
        return Interval(text(effect), words, None, None, None)

    def place(value: float) -> float:
        if math.isinf(value):
            return math.copysign(HALF, value)
        # A margin keeps the dot and the whisker's caps inside the picture.
        share = max(-1.0, min(1.0, value / scale)) if scale else 0.0
        return round(share * HALF * 0.92, 2)

    return Interval(
        effect=text(effect),
        bounds=words,
        dot=place(effect),
        low=place(low) if bounded else None,
        high=place(high) if bounded else None,
        open_low=math.isinf(low),
        open_high=math.isinf(high),
        matters=place(comparison.smallest) if comparison.smallest else None,
        margin=place(-comparison.margin) if comparison.margin else None,
    )


def limits(comparison: Comparison) -> str:
    """Say what the marks beside zero stand for.

    >>> limits(Comparison("?", "decades", 1.0, 0.4, 1.6, 5, "confirmed", smallest=1 / 3))
    'matters from ±0.333'
    >>> limits(Comparison("?", "points", 1.0, 0.4, 1.6, 5, "confirmed", margin=1.0))
    'margin: may lose up to 1'
    """
    if comparison.margin:
        return f"margin: may lose up to {number(float(f'{comparison.margin:.3g}'))}"
    smallest = number(float(f"{comparison.smallest:.3g}"))
    return f"matters from ±{smallest}" if comparison.smallest else ""


def remark(comparison: Comparison) -> str:
    """Add words to an answer: how many seeds would decide what is open.

    >>> remark(Comparison("?", "", 0.01, -0.01, 0.03, 5, "open", needed=(8, 1200)))
    '8 to 1,200 seeds would decide it'
    >>> remark(Comparison("?", "", 0.01, -0.01, 0.03, 5, "open", needed=(8, None)))
    '8 seeds or more would decide it'
    """
    if comparison.needed is None:
        return ""
    low, high = comparison.needed
    if high is None:
        return f"{number(low)} seeds or more would decide it"
    seeds = number(low) if low == high else f"{number(low)} to {number(high)}"
    return f"{seeds} seeds would decide it"


# One effect for each word, drawn where the page says what the words mean.
EXAMPLES: tuple[Comparison, ...] = (
    Comparison("", "", 2.4, 1.3, 3.5, 5, "confirmed", smallest=1.0),
    Comparison("", "", -0.6, -1.2, 0.0, 5, "confirmed", margin=2.0),
    Comparison("", "", 0.2, -0.4, 0.8, 5, "too small to matter", smallest=1.0),
    Comparison("", "", -2.3, -3.4, -1.2, 5, "opposite", smallest=1.0),
    Comparison("", "", 0.9, -0.9, 2.7, 5, "open", smallest=1.0),
)
