"""Result of :func:`normkit.diagnose`: findings, the worst first, and what the number would be."""

from __future__ import annotations

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import Any

from normkit.doctor.finding import SEVERITIES, Finding, Gain, Severity
from normkit.doctor.profile import Profile

__all__ = ["Diagnosis"]

WIDTH = 100
"""Columns of the text on a terminal."""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Result of :func:`normkit.diagnose`; ``print`` it.

    Attributes:
        findings: the worst first.
        score: of the evaluation batches, an accuracy in % or a loss; None without them.
        unit: of a change of the score, "points" of accuracy or "loss"; None without a score.
        gain: what population statistics of the training batches bring there; None if not measured.
        examined: what was looked at, in words.
        notes: what could not be looked at, and why.
        rules: how many rules were checked.
        seconds: how long it took.
        tried: what each treatment that was tried brings, by its key.
        profile: distance of the running statistics from the training batches, layer by layer; None
            without training batches or without such layers.
    """

    findings: tuple[Finding, ...]
    score: float | None
    unit: str | None
    gain: Gain | None
    examined: str
    notes: tuple[str, ...]
    rules: int
    seconds: float
    tried: Mapping[str, Gain] = dataclasses.field(default_factory=dict)
    profile: Profile | None = None

    @property
    def worst(self) -> Severity | None:
        """The worst severity among the findings, or None."""
        return next((s for s in SEVERITIES if any(f.severity == s for f in self.findings)), None)

    def of(self, rule: str) -> tuple[Finding, ...]:
        """Return the findings of one rule."""
        return tuple(one for one in self.findings if one.rule == rule)

    @property
    def headline(self) -> str:
        """First line: what the number is, and what it would be; without a number, the findings."""
        if self.score is None or self.unit is None:
            return self.counts
        score = f"evaluation {_number(self.score, self.unit)}"
        if self.gain is None:
            return score
        after = _number(self.gain.after, self.unit)
        return f"{score}; with population statistics {after}, {self.gain}"

    @property
    def counts(self) -> str:
        """Number of findings of each severity."""
        count = Counter(one.severity for one in self.findings)
        parts = [f"{count[s]} {s}{'s' if count[s] > 1 else ''}" for s in SEVERITIES if count[s]]
        return ", ".join(parts) or "nothing found"

    @property
    def head(self) -> tuple[str, str]:
        """First two lines: the headline, and what was examined."""
        cost = f"{self.examined}, {self.seconds:.1f} s"
        return self.headline, cost if self.score is None else f"{self.counts}; {cost}"

    def __repr__(self) -> str:
        lines = list(self.head)
        for number, one in enumerate(self.findings, 1):
            lines += ["", f"{number}. {one.severity} {one.rule} at {one.where}"]
            lines += _wrapped(one.says, "   ")
            lines += _wrapped(f"do: {one.do}", "   ", "       ")
            if one.gain is not None:
                lines += [f"   brings: {one.gain}"]
        if self.notes:
            lines += ["", *(line for note in self.notes for line in _wrapped(note, ""))]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as what JSON can hold."""
        return {
            "headline": self.headline,
            "score": self.score,
            "unit": self.unit,
            "gain": None if self.gain is None else self.gain._asdict(),
            "worst": self.worst,
            "examined": self.examined,
            "notes": list(self.notes),
            "rules": self.rules,
            "seconds": round(self.seconds, 3),
            "tried": {key: gain._asdict() for key, gain in self.tried.items()},
            "profile": None if self.profile is None else self.profile.to_json(),
            "findings": [
                {
                    "rule": one.rule,
                    "severity": one.severity,
                    "places": list(one.places),
                    "value": one.value,
                    "says": one.says,
                    "do": one.do,
                    "gain": None if one.gain is None else one.gain._asdict(),
                    "can_mend": one.can_mend,
                }
                for one in self.findings
            ],
        }


def _number(value: float, unit: str) -> str:
    return f"{value:.1f} %" if unit == "points" else f"{value:.4f}"


def _wrapped(text: str, first: str, later: str | None = None) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=first if later is None else later,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
