"""Tables: every run, means by arm, and means by setting beside what was published."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study.measures import Measure
from normkit.lab.findings import Table
from normkit.lab.runs import Run

__all__ = ["ByArm", "BySetting", "Cells", "Seeds", "mean_of", "settings_of", "values_of"]

Cells = Sequence[str | float | int | None]


def values_of(runs: Sequence[Run], measure: Measure) -> list[float]:
    """Return a measure of the runs that have it, in stored units."""
    return [value for run in runs if (value := measure.read(run)) is not None]


def mean_of(runs: Sequence[Run], measure: Measure) -> float | None:
    """Return the mean of a measure over the runs that have it, in stored units, or None."""
    values = values_of(runs, measure)
    return fmean(values) if values else None


def settings_of(setting: Callable[[Run], int]) -> Callable[[Evidence], list[int]]:
    """Return the values of a setting that are planned, from the smallest."""
    return lambda evidence: sorted({setting(planned.run) for planned in evidence.planned})


@dataclasses.dataclass(frozen=True)
class Seeds:
    """One row for each run: arm, seed, how it ended, and its measures.

    ``arms`` names the arms where their own names do not say enough.
    """

    measures: Sequence[Measure]
    title: str = "Seed by seed"
    digits: int | None = None
    arms: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __call__(self, evidence: Evidence) -> Table:
        """Tabulate."""
        rows = tuple(
            (
                self.arms.get(planned.arm, planned.arm),
                planned.run.config.seed,
                planned.run.ending,
                *(
                    measure.unit.cell(measure.read(planned.run), self.digits)
                    if planned.run.finished_training
                    else None
                    for measure in self.measures
                ),
            )
            for planned in evidence.planned
        )
        columns = (measure.unit.label(measure.name) for measure in self.measures)
        return Table("seeds", self.title, ("arm", "seed", "run", *columns), rows)


@dataclasses.dataclass(frozen=True)
class ByArm:
    """A row for each arm with the means over its seeds, then the published rows as typed.

    ``arms`` names the rows where the arms' own names do not; ``digits`` are the decimals of the
    columns where they are not the units'.
    """

    measures: Sequence[Measure]
    title: str
    published: Sequence[Cells] = ()
    arms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    digits: Sequence[int | None] = ()

    def __call__(self, evidence: Evidence) -> Table:
        """Tabulate."""
        places = self.digits or [None] * len(self.measures)
        rows: list[tuple[Any, ...]] = [
            (
                self.arms.get(arm, arm),
                *(
                    measure.unit.cell(mean_of(evidence.of(arm), measure), digits)
                    for measure, digits in zip(self.measures, places, strict=True)
                ),
            )
            for arm in evidence.arms
        ]
        rows += [tuple(each) for each in self.published]
        columns = (measure.unit.label(measure.name) for measure in self.measures)
        return Table("arms", self.title, ("arm", *columns), tuple(rows))


@dataclasses.dataclass(frozen=True)
class BySetting:
    """A column for each setting; for each row one of ours, and one of what was published there.

    ``rows`` has by name an arm, a measure and the published values by setting (in the unit that is
    printed; none, and the row has no second one). ``where`` gives the fields by which the runs of
    a setting are found; ``settings`` may be a function of the evidence.
    """

    title: str
    name: str
    settings: Sequence[float] | Callable[[Evidence], Sequence[float]]
    where: Callable[[Any], Mapping[str, Any]]
    rows: Sequence[tuple[str, str, Measure, Mapping[Any, float]]]
    digits: int | None = 1

    def __call__(self, evidence: Evidence) -> Table:
        """Tabulate."""
        settings = self.settings(evidence) if callable(self.settings) else self.settings
        rows: list[tuple[Any, ...]] = []
        for name, arm, measure, published in self.rows:
            means = [mean_of(evidence.of(arm, **self.where(each)), measure) for each in settings]
            rows.append((name, "ours", *(measure.unit.cell(each, self.digits) for each in means)))
            if published:
                rows.append((name, "published", *map(published.get, settings)))
        columns = (self.name, "whose", *(f"{each:g}" for each in settings))
        return Table("settings", self.title, columns, tuple(rows))
