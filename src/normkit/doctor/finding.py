"""Findings of the doctor: place, measurement, cause, what to do, and what that brings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from normkit.errors import OptionError, message
from normkit.handle import place_name

__all__ = ["SEVERITIES", "Finding", "Gain", "Severity", "Treatment", "list_places"]

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From the worst: results are wrong; they are probably worse than they need be; worth knowing."""

SHOWN = 3
"""Places that a line names; the attribute holds all of them."""


class Gain(NamedTuple):
    """Change of a score on the same samples, with a 95 % confidence interval.

    Attributes:
        before, after: the scores, an accuracy in % or a loss.
        change: what is better afterwards: points of accuracy more, or loss less.
        low, high: its 95 % confidence interval, of samples like these.
        unit: "points", or "loss".
        samples: how many were scored, the same ones both times.
    """

    before: float
    after: float
    change: float
    low: float
    high: float
    unit: str
    samples: int

    @property
    def helps(self) -> bool:
        """True if the interval lies above zero."""
        return self.low > 0

    def __str__(self) -> str:
        digits = 1 if self.unit == "points" else 3
        change, low, high = (f"{x:+.{digits}f}" for x in (self.change, self.low, self.high))
        low, high = (x.removeprefix("+") for x in (low, high))
        what = "points" if self.unit == "points" else "of loss"
        text = f"{change} [{low}, {high}] {what} on {self.samples:,} samples"
        return text.replace("-", "−")


class Treatment(NamedTuple):
    """Act that mends a finding.

    Attributes:
        key: name of it; findings with equal keys are mended, and tried, by the same act.
        apply: does it to the model and returns a handle with ``undo()``.
        trial: whether its effect on the score can be seen at once, without training.
        parts: acts that it consists of, in their order; empty for a single one.
    """

    key: str
    apply: Callable[[], Any]
    trial: bool = False
    parts: tuple[Treatment, ...] = ()


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding of :func:`normkit.diagnose`.

    Attributes:
        severity: "error", "warning" or "note".
        places: names of the modules, in the order of the model; empty for the data.
        says: measurement, threshold and cause.
        do: what to do about it, a line of code where one does.
        value: what was measured, in the unit that ``says`` names; None where nothing was.
        treatment: how :meth:`mend` does it; None where it takes a person.
        trial: an act that is only tried, to measure what ``do`` brings where ``mend`` cannot do it.
        gain: what that brings on the evaluation batches; None where it was not measured.
        rule: its code, such as "NK290", which :func:`normkit.diagnose` fills in;
            ``normkit doctor --explain NK290`` prints the rule.
    """

    severity: Severity
    places: tuple[str, ...]
    says: str
    do: str
    value: float | None = None
    treatment: Treatment | None = dataclasses.field(default=None, repr=False, compare=False)
    gain: Gain | None = None
    rule: str = ""
    trial: Treatment | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def can_mend(self) -> bool:
        """True if :meth:`mend` mends it."""
        return self.treatment is not None

    def mend(self) -> Any:
        """Mend it in place and return a handle, whose ``undo()`` restores what was before.

        Raises:
            OptionError: it takes a change of the training or of the program.
        """
        if self.treatment is None:
            raise OptionError(
                message(
                    "a finding that a call can mend",
                    f"{self.rule}, which takes a change of your program",
                    self.do,
                )
            )
        return self.treatment.apply()

    @property
    def where(self) -> str:
        """The first places, and how many more."""
        if not self.places:
            return "data"
        return list_places(self.places)


def list_places(places: Sequence[str]) -> str:
    """Name the first places, and how many more there are.

    >>> list_places(["1", "", "3", "4", "5"])
    '1, (the model), 3 and 2 more'
    """
    names = ", ".join(place_name(name) for name in places[:SHOWN])
    more = len(places) - SHOWN
    return names if more <= 0 else f"{names} and {more} more"
