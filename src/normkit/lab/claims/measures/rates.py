"""Ranges of learning rates that work, by optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.measures import limits
from normkit.lab.claims.study import (
    DECADES,
    PERCENT,
    TEST,
    TRAIN,
    Curves,
    Quantity,
    Series,
    mean_of,
    over,
)
from normkit.lab.claims.study.units import UNKNOWN
from normkit.lab.findings import Line, Table
from normkit.lab.runs import Run

__all__ = [
    "ADADELTA",
    "CUSTOMARY",
    "GRIDS",
    "RMSPROP",
    "SGD",
    "STEP",
    "WIDTHS",
    "WORKS",
    "chart",
    "rate_table",
    "summary_table",
    "widths",
    "working",
]

SGD, ADADELTA, RMSPROP = "SGD", "Adadelta", "RMSProp"
STEP = 1 / 6  # of a decade, from one rate to the next


def _grid(first: float, last: float) -> tuple[float, ...]:
    """Six rates a decade from the first to the last.

    >>> _grid(0.1, 2.0)
    (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
    """
    rates = [
        float(f"{digits}e{power}") for power in range(-4, 3) for digits in (1, 1.5, 2, 3, 5, 7)
    ]
    return tuple(rate for rate in rates if first <= rate <= last)


GRIDS: dict[str, tuple[float, ...]] = {
    SGD: _grid(0.02, limits.GRID[-1]),
    ADADELTA: _grid(0.1, 50),
    RMSPROP: _grid(1e-4, 5e-2),
}
CUSTOMARY = {SGD: 0.1, ADADELTA: 1.0, RMSPROP: 0.001}
WORKS = 0.05
"""The distance below the best rate's accuracy at which a rate still works, as a share."""


def working(accuracy: Mapping[float, float]) -> list[float]:
    """The rates around the best one, without a gap, at which it works.

    >>> working({0.1: 0.2, 0.2: 0.78, 0.5: 0.81, 1.0: 0.77, 2.0: 0.7, 5.0: 0.78})
    [0.2, 0.5, 1.0]
    """
    rates = sorted(accuracy)
    best = max(rates, key=lambda lr: accuracy[lr])
    ranges: list[list[float]] = [[]]
    for lr in rates:
        if accuracy[best] - accuracy[lr] <= WORKS:
            ranges[-1].append(lr)
        else:
            ranges.append([])
    return next(each for each in ranges if best in each)


def _range(arm: str, grid: Sequence[float]) -> Quantity:
    """Measure the range of an optimizer's rates in decades, for seeds that have the whole grid."""

    def by_seed(evidence: Evidence) -> Mapping[int, float]:
        widths = {}
        for seed in evidence.seeds:
            values = {run.config.lr: TRAIN.read(run) for run in evidence.of(arm, seed=seed)}
            known = {lr: value for lr, value in values.items() if value is not None}
            if len(known) == len(grid):
                rates = working(known)
                widths[seed] = math.log10(rates[-1] / rates[0])
        return widths

    return Quantity(by_seed, DECADES)


WIDTHS = {arm: _range(arm, grid) for arm, grid in GRIDS.items()}


def _stops(evidence: Evidence, arm: str) -> list[float]:
    """The rates at which half of the runs or more do not train (as in C3)."""
    at = {lr: evidence.of(arm, lr=lr) for lr in GRIDS[arm]}
    return [
        lr for lr, runs in at.items() if runs and 2 * sum(map(limits.trains, runs)) <= len(runs)
    ]


def widths(evidence: Evidence) -> str:
    """The mean width of each optimizer's range."""
    of = {arm: width.shown(evidence) for arm, width in WIDTHS.items()}
    return ", ".join(
        f"{arm} {f'{fmean(values):.1f}' if values else UNKNOWN}" for arm, values in of.items()
    )


def _rate_in(unit: float) -> Callable[[Run], float]:
    return lambda run: run.config.lr / unit


def chart(key: str, title: str, x: str, *, relative: bool = False) -> Curves:
    """Training accuracy by rate, or by multiples of the customary one, for each optimizer."""
    units = CUSTOMARY if relative else dict.fromkeys(GRIDS, 1.0)
    ends = [lr / units[arm] for arm, grid in GRIDS.items() for lr in grid]
    series = [Series(arm, over(_rate_in(units[arm]), TRAIN)) for arm in GRIDS]
    return Curves(
        key, title, x, "training accuracy, last epoch", PERCENT,
        series=series,
        band="range",  # an interval from few seeds would leave the scale of an accuracy
        extra=[Line("guessing", (min(ends), max(ends)), (10.0, 10.0), role="theory")],
        more="A cross stands where half of the runs or more do not train.",
        failed=lambda run: not limits.trains(run),
        x_log=True,
    )  # fmt: skip


def summary_table(evidence: Evidence) -> Table:
    """Each optimizer at its customary rate, at its best, and how far it works."""
    rows: list[Sequence[str | float | None]] = []
    for arm, grid in GRIDS.items():
        means = {lr: mean_of(evidence.of(arm, lr=lr), TRAIN) for lr in grid}
        known = {lr: value for lr, value in means.items() if value is not None}
        best = max(known, key=lambda lr: known[lr]) if known else None
        width, ends = WIDTHS[arm].shown(evidence), _stops(evidence, arm)
        trained = f"trains up to {grid[-1]:g}" if known else None
        rows.append((
            arm,
            CUSTOMARY[arm],
            PERCENT.cell(means[CUSTOMARY[arm]], 1),
            best,
            PERCENT.cell(known[best], 1) if best is not None else None,
            round(fmean(width), 2) if width else None,
            ", ".join(f"{lr:g}" for lr in ends) or trained,
        ))  # fmt: skip
    columns = ("optimizer", "customary rate", "accuracy there, %", "best rate",
               "accuracy there, %", "decades that work", "does not train at")  # fmt: skip
    title = "Training accuracy, last epoch, by optimizer (mean over seeds; the sources have none)"
    return Table("optimizers", title, columns, tuple(map(tuple, rows)))


def rate_table(evidence: Evidence) -> Table:
    """Each rate of each grid."""
    rows = []
    for arm, grid in GRIDS.items():
        for lr in grid:
            runs = evidence.of(arm, lr=lr)
            accuracy = (PERCENT.cell(mean_of(runs, measure), 1) for measure in (TRAIN, TEST))
            rows.append((arm, lr, *accuracy, f"{sum(map(limits.trains, runs))} of {len(runs)}"))
    columns = ("optimizer", "learning rate", "training accuracy, %", "test accuracy, %", "train")
    return Table("grid", "Last epoch, rate by rate, mean over the seeds", columns, tuple(rows))
