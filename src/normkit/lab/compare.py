"""Compare two stores: of two machines, two versions, two days.

For each claim at each preset that either has: both verdicts and the effects behind them. For the
runs that both have finished under the same key, which means the same description: how far their
last figures are apart. Neither store is changed.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence

from normkit.lab.findings import Comparison, Finding
from normkit.lab.judge import judge_with_runs
from normkit.lab.runs import Run
from normkit.lab.store import Store

__all__ = ["ClaimPair", "EffectPair", "Figure", "Shared", "Side", "StorePair", "compare_stores"]

TIMES = ("epoch_seconds",)
"""Metrics that differ from one call to the next by their nature."""


@dataclasses.dataclass(frozen=True)
class Side:
    """The origin of a store's runs. ``versions`` has a text for each set of versions."""

    store: str
    runs: int
    finished: int
    machines: tuple[str, ...]
    versions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class EffectPair:
    """An effect in both stores; None where a store lacks it."""

    question: str
    first: Comparison | None
    second: Comparison | None

    @property
    def overlap(self) -> bool | None:
        """True if the two intervals overlap; None unless there are two."""
        if self.first is None or self.second is None:
            return None
        return self.first.low <= self.second.high and self.second.low <= self.first.high


@dataclasses.dataclass(frozen=True)
class ClaimPair:
    """A claim at a preset in both stores; a verdict is None where a store lacks the claim.

    ``common`` counts the runs that both have planned for it; ``planned`` all, for each.
    """

    claim: str
    preset: str
    title: str
    verdicts: tuple[str | None, str | None]
    effects: tuple[EffectPair, ...]
    common: int
    planned: tuple[int, int]

    @property
    def differs(self) -> bool:
        """True if both stores have a verdict and the verdicts differ."""
        first, second = self.verdicts
        return first is not None and second is not None and first != second


@dataclasses.dataclass(frozen=True)
class Figure:
    """The differences of a metric's last value between runs of the same key.

    ``median`` and ``largest`` are of the absolute differences; ``run`` is the key of the largest.
    """

    metric: str
    runs: int
    equal: int
    median: float
    largest: float
    run: str


@dataclasses.dataclass(frozen=True)
class Shared:
    """The runs finished in both stores.

    ``endings`` has (key, ending in the first, in the second) of those that ended differently;
    ``time`` is the median ratio of their seconds, second to first.
    """

    runs: int
    endings: tuple[tuple[str, str, str], ...]
    figures: tuple[Figure, ...]
    time: float | None


@dataclasses.dataclass(frozen=True)
class StorePair:
    """The result of a comparison. Claims whose verdicts differ come first."""

    sides: tuple[Side, Side]
    claims: tuple[ClaimPair, ...]
    shared: Shared


def compare_stores(first: Store, second: Store) -> StorePair:
    """Compare two stores, which may be open read-only."""
    with first.snapshot(), second.snapshot():
        ours, theirs = first.runs(), second.runs()
        return StorePair(
            sides=(_side(first, ours), _side(second, theirs)),
            claims=tuple(_claims([(first, ours), (second, theirs)])),
            shared=_shared(ours, theirs),
        )


def _side(store: Store, all_runs: Mapping[str, Run]) -> Side:
    runs = [run for run in all_runs.values() if run.finished_training]
    versions = (
        ", ".join(f"{name} {v}" for name, v in sorted(run.versions.items())) for run in runs
    )
    return Side(
        store=str(store.path),
        runs=len(all_runs),
        finished=len(runs),
        machines=tuple(dict.fromkeys(run.machine for run in runs)),
        versions=tuple(dict.fromkeys(versions)),
    )


def _claims(sides: Sequence[tuple[Store, dict[str, Run]]]) -> list[ClaimPair]:
    pairs = []
    for preset in dict.fromkeys(p for store, _ in sides for _, p in store.plans()):
        ours, theirs = (
            {
                finding.key: finding
                for finding in judge_with_runs(store, preset, known=runs).findings
            }
            for store, runs in sides
        )
        plans = [_plan(store, preset) for store, _ in sides]
        for key in dict.fromkeys((*ours, *theirs)):
            one, other = ours.get(key), theirs.get(key)
            known = one or other
            assert known is not None
            runs = [plan.get(key, set()) for plan in plans]
            pairs.append(
                ClaimPair(
                    claim=key,
                    preset=preset,
                    title=known.title,
                    verdicts=(one.word if one else None, other.word if other else None),
                    effects=_effects(one, other),
                    common=len(runs[0] & runs[1]),
                    planned=(len(runs[0]), len(runs[1])),
                )
            )
    # Python sorts stably: within each of the three kinds, claims stay in their order.
    return sorted(pairs, key=lambda pair: 0 if pair.differs else 1 + (None in pair.verdicts))


def _plan(store: Store, preset: str) -> dict[str, set[str]]:
    plan: dict[str, set[str]] = {}
    for part in store.parts():
        if part.preset == preset:
            plan.setdefault(part.claim, set()).add(part.key)
    return plan


def _effects(one: Finding | None, other: Finding | None) -> tuple[EffectPair, ...]:
    sides = [
        {comparison.question: comparison for comparison in finding.comparisons} if finding else {}
        for finding in (one, other)
    ]
    questions = dict.fromkeys((*sides[0], *sides[1]))
    return tuple(EffectPair(each, sides[0].get(each), sides[1].get(each)) for each in questions)


def _shared(first: Mapping[str, Run], second: Mapping[str, Run]) -> Shared:
    pairs: list[tuple[str, Run, Run]] = []
    for key, one in first.items():
        other = second.get(key)
        if other and one.finished_training and other.finished_training:
            pairs.append((key, one, other))
    ratios = [other.seconds / one.seconds for _, one, other in pairs if one.seconds > 0]
    return Shared(
        runs=len(pairs),
        endings=tuple(
            (key, one.ending, other.ending)
            for key, one, other in pairs
            if one.ending != other.ending
        ),
        figures=tuple(_figures(pairs)),
        time=statistics.median(ratios) if ratios else None,
    )


def _figures(pairs: Iterable[tuple[str, Run, Run]]) -> list[Figure]:
    apart: dict[str, list[tuple[float, str]]] = {}
    for key, one, other in pairs:
        if one.config.kind == "timing":
            continue
        for name in one.metrics:
            mine, theirs = one.last(name), other.last(name)
            if name not in TIMES and mine is not None and theirs is not None:
                # Two infinities are as equal as two numbers, and their difference is none.
                gap = 0.0 if mine == theirs else abs(mine - theirs)
                apart.setdefault(name, []).append((gap, key))
    return [
        Figure(
            metric=name,
            runs=len(gaps),
            equal=sum(gap == 0 for gap, _ in gaps),
            median=statistics.median(gap for gap, _ in gaps),
            largest=max(gaps)[0],
            run=max(gaps)[1],
        )
        for name, gaps in sorted(apart.items())
    ]
