"""Endpoints: questions, the differences that answer them, and the sizes that matter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study.quantities import Quantity
from normkit.lab.claims.study.units import decimal
from normkit.lab.findings import Comparison
from normkit.lab.verdicts import paired_test

__all__ = ["Effect", "Endpoint"]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A question, and the quantity whose mean over the seeds answers it: positive for the claim.

    All sizes are in the unit that is printed (points, nats). ``matters`` is the smallest effect
    that would matter. ``margin`` makes it a question of non-inferiority: the effect may be negative
    by less than that; the effect that is printed is the plain one. ``shared`` is the standard
    deviation by which all seeds may be off together (:func:`normkit.lab.verdicts.interval`).
    ``provided`` says whether the question can be asked of the evidence; if not, it stays open.
    ``unit`` replaces the quantity's own in print.
    """

    question: str
    of: Quantity
    matters: float = 0.0
    margin: float = 0.0
    shared: float = 0.0
    provided: Callable[[Evidence], bool] = lambda evidence: True
    unit: str = ""

    def compare(self, evidence: Evidence) -> Comparison | None:
        """Return the effect with its interval; None with fewer than two seeds.

        The interval covers what another study of this kind would draw anew: the seed, which decides
        first weights, training images and their order, *and* the test images, where the runs
        recorded the figure of each (``images`` of the comparison is their number; 0: the interval
        is about these test images only). Seeds and images are crossed
        (:func:`normkit.lab.crossed.image_error`). It does not cover another network, data set or
        recipe.
        """
        if not self.provided(evidence):
            return None
        error, images = self.of.image_error(evidence)
        comparison = paired_test(
            self.question,
            self.of.shown(evidence),
            unit=self.printed,
            smallest=self.matters,
            margin=self.margin,
            shared=math.hypot(self.shared, error),
        )
        return comparison and dataclasses.replace(comparison, images=images)

    @property
    def printed(self) -> str:
        """Return the unit of the effect."""
        return self.unit or self.of.unit.apart

    @property
    def rule(self) -> str:
        """Return the question with what decides it, in words."""
        size = self.margin or self.matters
        if not size:
            return self.question
        unit = self.printed.removesuffix("s") if size == 1 else self.printed
        return f"{self.question} ({'margin' if self.margin else 'matters from'} {size:g} {unit})"


@dataclasses.dataclass(frozen=True)
class Effect:
    """An effect as a sentence names it, between braces.

    ``{gain}`` prints the effect and its interval, ``{gain:plain}`` the effect alone, and
    ``{gain:x2}`` the number of which it is the logarithm (``x10`` to base ten). ``{gain:number}``
    is for a unit that follows; ``{share:level}`` prints what is no difference, without a plus.

    >>> found = Comparison("", "halvings", 1.0, 0.5, 1.5, 5, "confirmed")
    >>> f"{Effect(found)}; {Effect(found):plain}; {Effect(found):x2}; {Effect(None)}"
    '+1.0 [+0.5, +1.5]; +1.0; 2.0 [1.4, 2.8]; —'
    >>> f"{Effect(found):level}"
    '1.0 [0.5, 1.5]'
    """

    of: Comparison | None

    @property
    def answer(self) -> str:
        """The question and its answer, as a sentence of their own."""
        if self.of is None:
            return ""
        return f"{self.of.question} {self} {self.of.unit}".rstrip() + "."

    def __format__(self, spec: str) -> str:
        comparison = self.of
        if comparison is None:
            return "—"
        if spec.startswith("x"):
            comparison = _power(float(spec[1:]), comparison)
        places = 2 if comparison.decimals is None else comparison.decimals
        shown = _ratio if spec.startswith("x") else _level if spec == "level" else _signed
        middle, low, high = (
            shown(end, places) for end in (comparison.effect, comparison.low, comparison.high)
        )
        constant = comparison.low == comparison.high
        return middle if spec == "plain" or constant else f"{middle} [{low}, {high}]"


def _power(base: float, comparison: Comparison) -> Comparison:
    """Return the comparison of which this has the logarithms; infinity is beyond any reading."""

    def power(exponent: float) -> float:
        beyond = exponent * math.log10(base) > 15
        return math.inf if beyond else base**exponent

    ends: dict[str, Any] = {
        name: power(getattr(comparison, name)) for name in ("effect", "low", "high")
    }
    return dataclasses.replace(comparison, **ends)


def _ratio(value: float, places: int) -> str:
    return "more than 10¹⁵" if value == math.inf else decimal(value, places)


def _level(value: float, places: int) -> str:
    return _signed(value, places).removeprefix("+")


def _signed(value: float, places: int) -> str:
    """Return a number with its sign, a real minus; zero and what is unknown have none."""
    text = decimal(abs(value), places)
    if math.isnan(value) or (math.isfinite(value) and not float(text)):
        return text
    return f"−{text}" if value < 0 else f"+{text}"
