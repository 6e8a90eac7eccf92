"""Up to which learning rate an arm trains."""

from __future__ import annotations

import math
from collections.abc import Mapping

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study import (
    CHANCE_LOSS,
    DECADES,
    NATS,
    TRAIN_LOSS,
    WITH,
    WITHOUT,
    Quantity,
    mean_of,
)
from normkit.lab.findings import Table
from normkit.lab.runs import Run

__all__ = ["GRID", "STEP", "grid_table", "largest", "limits_table", "trains"]

GRID = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
STEP = 1 / 3  # of a decade, from one rate to the next


def trains(run: Run) -> bool:
    """Return True if the training loss of the last epoch is clearly below that of guessing."""
    loss = TRAIN_LOSS.read(run)
    return loss is not None and loss < 0.9 * CHANCE_LOSS


def largest(arm: str) -> Quantity:
    """The decimal logarithm of the largest rate at which an arm trains, of seeds with all rates."""

    def by_seed(evidence: Evidence) -> Mapping[int, float]:
        limits = {}
        for seed in evidence.seeds:
            runs = evidence.of(arm, seed=seed)
            if len(runs) == len(GRID):
                rates = [run.config.lr for run in runs if trains(run)]
                limits[seed] = math.log10(max(rates)) if rates else math.log10(GRID[0]) - STEP
        return limits

    return Quantity(by_seed, DECADES)


def grid_table(evidence: Evidence) -> Table:
    """Rate by rate, the mean loss and how many runs train."""
    rows = []
    for lr in GRID:
        row: list[str | float | None] = [lr]
        for arm in (WITH, WITHOUT):
            runs = evidence.of(arm, lr=lr)
            row.append(NATS.cell(mean_of(runs, TRAIN_LOSS), 3))
            row.append(f"{sum(map(trains, runs))} of {len(runs)}")
        rows.append(tuple(row))
    columns = [f"{what} {arm}" for arm in (WITH, WITHOUT) for what in ("loss", "train")]
    title = "Mean loss of the last epoch, and how many runs train"
    return Table("grid", title, ("learning rate", *columns), tuple(rows))


def limits_table(evidence: Evidence) -> Table:
    """The largest rate of each arm, seed by seed."""

    def text(limit: float | None) -> str | None:
        if limit is None:
            return None
        rate = 10**limit
        if rate < GRID[0] * 0.99:
            return f"none from {GRID[0]:g}"
        return f"{rate:g} or more" if rate > GRID[-1] * 0.99 else f"{rate:g}"

    limits = [largest(arm).by_seed(evidence) for arm in (WITH, WITHOUT)]
    rows = tuple((seed, *(text(each.get(seed)) for each in limits)) for seed in evidence.seeds)
    title = "The largest rate at which each arm trains"
    return Table("limits", title, ("seed", WITH, WITHOUT), rows)
