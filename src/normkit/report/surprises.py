"""Results that surprise, chosen by a rule from the findings."""

from __future__ import annotations

from collections.abc import Sequence

from normkit.lab.findings import Comparison, Finding, PartWord

__all__ = ["RULE", "surprises"]

RULE = (
    "Chosen by rule: of all parts that decide, those that came out opposite, then those too small "
    "to matter, then those confirmed; within each the largest effects, as multiples of what "
    "matters; one of each claim."
)
"""The rule in words, to stand beside what it chooses."""

_ORDER: tuple[PartWord, ...] = ("opposite", "too small to matter", "confirmed")


def surprises(findings: Sequence[Finding], count: int = 3) -> list[tuple[Finding, Comparison]]:
    """Choose the results that contradict what was claimed most, each with its finding.

    Findings whose runs are not all there have no say.

    >>> surprises([])
    []
    """
    ranked = sorted(
        (
            (_ORDER.index(part.word), -_multiple(part), place, finding, part)
            for place, finding in enumerate(findings)
            if finding.complete
            for part in finding.comparisons
            if part.decides and part.word in _ORDER
        ),
        key=lambda each: each[:3],
    )
    chosen: dict[int, tuple[Finding, Comparison]] = {}
    for _, _, place, finding, part in ranked:
        chosen.setdefault(place, (finding, part))
    return list(chosen.values())[:count]


def _multiple(part: Comparison) -> float:
    """Return the effect as a multiple of what matters, or of what may be lost."""
    matters = part.smallest or part.margin
    return abs(part.effect) / matters if matters else 0.0
