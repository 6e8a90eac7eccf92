"""Which learning rates work with which optimizer: what C9 measures and draws."""

from __future__ import annotations

import dataclasses
import math
from statistics import fmean

from normkit.lab.claims import c03
from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.parts import extremes, seen
from normkit.lab.claims.sweeps import mean_of, percent
from normkit.lab.findings import Chart, Line, Table
from normkit.lab.runs import Run

__all__ = [
    "ADADELTA",
    "CUSTOMARY",
    "FAR",
    "GRIDS",
    "RMSPROP",
    "SGD",
    "WORKS",
    "accuracy",
    "by_rate",
    "mean_width",
    "rate_chart",
    "rate_table",
    "stops",
    "summary_table",
    "tested",
    "width",
    "working",
]

SGD, ADADELTA, RMSPROP = "SGD", "Adadelta", "RMSProp"
GRIDS: dict[str, tuple[float, ...]] = {
    SGD: (0.02, 0.05, *c03.GRID),
    ADADELTA: (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0),
    RMSPROP: (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2),
}
CUSTOMARY = {SGD: 0.1, ADADELTA: 1.0, RMSPROP: 0.001}
FAR = 50
"""So many times the customary rate, where each grid has a rate: far too much for any."""
WORKS = 0.05


accuracy = seen
"""Training accuracy of the last epoch, which says whether a rate works."""


def tested(run: Run) -> float | None:
    """Test accuracy after the last epoch, with the statistics remembered."""
    return run.last("test_accuracy")


def by_rate(evidence: Evidence, arm: str, seed: int) -> dict[float, float]:
    """An optimizer's accuracy at each rate of its grid; empty until the whole grid is run."""
    values = {run.config.lr: accuracy(run) for run in evidence.of(arm, seed=seed)}
    known = {lr: value for lr, value in values.items() if value is not None}
    return known if len(known) == len(GRIDS[arm]) else {}


def working(found: dict[float, float]) -> list[float]:
    """The rates around the best one, without a gap, at which it works.

    >>> working({0.1: 0.2, 0.2: 0.78, 0.5: 0.81, 1.0: 0.77, 2.0: 0.7, 5.0: 0.78})
    [0.2, 0.5, 1.0]
    """
    rates = sorted(found)
    best = max(rates, key=lambda lr: found[lr])
    ranges: list[list[float]] = [[]]
    for lr in rates:
        if found[best] - found[lr] <= WORKS:
            ranges[-1].append(lr)
        else:
            ranges.append([])
    return next(each for each in ranges if best in each)


def width(evidence: Evidence, arm: str, seed: int) -> float | None:
    """How many decades of rates work; None until the optimizer's grid is run."""
    found = by_rate(evidence, arm, seed)
    if not found:
        return None
    rates = working(found)
    return math.log10(rates[-1] / rates[0])


def mean_width(evidence: Evidence, arm: str) -> float | None:
    """The same, on average over the seeds that have their whole grid."""
    widths = [w for seed in evidence.seeds for w in [width(evidence, arm, seed)] if w is not None]
    return fmean(widths) if widths else None


def stops(evidence: Evidence, arm: str) -> list[float]:
    """The rates at which half of the runs or more do not train (as in C3)."""
    at = {lr: evidence.of(arm, lr=lr) for lr in GRIDS[arm]}
    return [lr for lr, runs in at.items() if runs and 2 * sum(map(c03.trains, runs)) <= len(runs)]


def rate_chart(evidence: Evidence, relative: bool = False) -> Chart | None:
    """Training accuracy by rate, or by multiples of the customary one; crosses where it stops."""
    lines, words = [], []
    for arm, grid in GRIDS.items():
        unit = CUSTOMARY[arm] if relative else 1.0
        # The seeds' range: an interval from few seeds would leave the scale of an accuracy.
        rows = [
            [100 * value if value is not None else None for value in map(found.get, grid)]
            for seed in evidence.seeds
            for found in [{run.config.lr: accuracy(run) for run in evidence.of(arm, seed=seed)}]
        ]
        line = extremes(arm, arm, [lr / unit for lr in grid], rows)
        if line is None:
            continue
        ends = stops(evidence, arm)
        failed = tuple(lr / unit for lr in ends)
        lines.append(dataclasses.replace(line, failed=failed))
        at = ", ".join(f"{lr:g}" for lr in ends)
        words.append(f"{arm} does not train at {at}" if at else f"{arm} trains at every rate run")
    if not lines:
        return None
    x = [rate for line in lines for rate in line.x]
    lines.append(Line("guessing", (min(x), max(x)), (10.0, 10.0), role="theory"))
    customary = ", ".join(f"{arm} {rate:g}" for arm, rate in CUSTOMARY.items())
    return Chart(
        key="factors" if relative else "rates",
        title=(
            "How far from its customary rate each optimizer works"
            if relative
            else "Training accuracy by learning rate, with BN"
        ),
        x_label="learning rate over the customary one" if relative else "learning rate",
        y_label="training accuracy, last epoch (%)",
        lines=tuple(lines),
        text=(
            "Training accuracy of the last epoch at each learning rate"
            + (f", as a multiple of the customary rate ({customary})" if relative else "")
            + ", one line for each optimizer: the median of the seeds, with a band from the least "
            "to the greatest of them, and a cross where half of the runs or more do not train. "
            + "; ".join(words)
            + "."
        ),
        x_log=True,
        markers=True,
    )


def summary_table(evidence: Evidence) -> Table:
    """Each optimizer at its customary rate, at its best, and how far it works."""
    rows: list[tuple[str | float | int | None, ...]] = []
    for arm, grid in GRIDS.items():
        means = {lr: mean_of(evidence.of(arm, lr=lr), accuracy) for lr in grid}
        known = {lr: value for lr, value in means.items() if value is not None}
        best = max(known, key=lambda lr: known[lr]) if known else None
        wide, ends = mean_width(evidence, arm), stops(evidence, arm)
        rows.append(
            (
                arm,
                CUSTOMARY[arm],
                percent(means[CUSTOMARY[arm]]),
                best,
                percent(known[best]) if best is not None else None,
                None if wide is None else round(wide, 2),
                ", ".join(f"{lr:g}" for lr in ends)
                or (f"trains up to {grid[-1]:g}" if known else None),
            )
        )
    columns = ("optimizer", "customary rate", "accuracy there, %", "best rate",
               "accuracy there, %", "decades that work", "does not train at")  # fmt: skip
    return Table(
        "optimizers",
        "Training accuracy, last epoch, by optimizer (mean over seeds; the sources give no sweep)",
        columns,
        tuple(rows),
    )


def rate_table(evidence: Evidence) -> Table:
    """Each rate of each grid."""
    rows = tuple(
        (
            arm,
            lr,
            *(percent(mean_of(evidence.of(arm, lr=lr), value)) for value in (accuracy, tested)),
            f"{sum(map(c03.trains, evidence.of(arm, lr=lr)))} of {len(evidence.of(arm, lr=lr))}",
        )
        for arm, grid in GRIDS.items()
        for lr in grid
    )
    columns = ("optimizer", "learning rate", "training accuracy, %", "test accuracy, %", "train")
    return Table("grid", "Last epoch, rate by rate, mean over the seeds", columns, rows)
