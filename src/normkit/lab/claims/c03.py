"""C3: batch normalization tolerates larger learning rates.

A run *trains* at a rate if the mean training loss of its last epoch is below 90 % of that of
guessing, 0.9 · ln 10 = 2.07; the source's plain network, which stops near 2.25 at 0.5, did not. The
grid has three rates per decade. An arm that trains at no rate counts one step below the first; one
that trains at the last rate tolerates at least that much, so that the difference is then too small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.sources import ARTICLE, IOFFE
from normkit.lab.claims.study import (
    CHANCE_LOSS,
    DECADES,
    NATS,
    ON_AND_OFF,
    TRAIN_LOSS,
    WITH,
    WITHOUT,
    Endpoint,
    Plan,
    Quantity,
    Scale,
    by_setting,
    define,
    mean_of,
    published,
)
from normkit.lab.findings import Line, Table
from normkit.lab.runs import Run

GRID = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
STEP = 1 / 3  # of a decade, from one rate to the next
SOURCE_RATE = 0.5

PLAN = Plan(
    scales={
        "quick": Scale(seeds=5, train=10_000, test=1_000, epochs=2),
        "full": Scale(seeds=6, train=10_000, test=1_000, epochs=2),
        "paper": Scale(seeds=10, train=60_000, test=10_000, epochs=5),
    },
    arms=ON_AND_OFF,
    base={"model": "lenet5", "batch_size": 256},
    settings=[{"lr": lr} for lr in GRID],
)


def trains(run: Run) -> bool:
    """Whether the training loss of the last epoch is clearly below that of guessing."""
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


CLAIM = define(
    key="C3",
    title="Batch normalization tolerates larger learning rates",
    statement="With batch normalization a network still trains at learning rates at which the same "
    "network without it does not learn at all.",
    sources=(
        ARTICLE.says(
            "at a learning rate of 0.5 the network without BN stops near a loss of 2.25; with BN "
            "the loss gets lower and is steadier",
            "LeNet-5 on Fashion-MNIST",
        ),
        IOFFE.says(
            "Inception with BN trains at 5 and at 30 times the learning rate; without, at 5 times "
            "its parameters reach machine infinity",
            "§3.3 and §4.2",
        ),
    ),
    prediction="The largest learning rate at which the loss falls below 0.9 · ln 10 is higher with "
    "BN, and at 0.5 its loss is lower.",
    plan=PLAN,
    decides={
        "rate": Endpoint(
            "By how many decades is the largest learning rate at which it trains higher?",
            largest(WITH) - largest(WITHOUT),
            matters=0.1,
            # Each of two limits is rounded to a step, alike for all seeds: a variance of step²/12.
            shared=STEP / math.sqrt(6),
        ),
    },
    information={
        "at_source": Endpoint(
            f"How much lower is the last epoch's training loss at {SOURCE_RATE}?",
            TRAIN_LOSS.at(WITHOUT, lr=SOURCE_RATE) - TRAIN_LOSS.at(WITH, lr=SOURCE_RATE),
            matters=0.01,
        ),
    },
    rule="95 % t intervals of the paired differences, never narrower than the grid can tell",
    sentence="The largest learning rate at which the network trains is higher with BN by {rate} "
    f"decades; at {SOURCE_RATE} the training loss of the last epoch is lower by {{at_source}} nats",
    charts=(
        by_setting(
            lambda run: run.config.lr,
            TRAIN_LOSS,
            "Training loss of the last epoch by learning rate",
            "learning rate",
            "cross-entropy",
            x_log=True,
            extra=[
                Line("guessing, ln 10", (GRID[0], GRID[-1]), (CHANCE_LOSS,) * 2, role="theory"),
                published(WITHOUT, {SOURCE_RATE: 2.25}),
            ],
            more="A run whose loss was not finite counts as guessing, ln 10 = 2.303.",
        ),
    ),
    tables=(grid_table, limits_table),
    differs="The source used a single rate, 0.5. Whether the plain network trains there depends on "
    "its first weights and the order of its images; with ours it may well train at 0.5 and stop "
    "later. A rate counts as tolerated here where the loss is a tenth below guessing, however "
    "badly the network learns, and the grid is coarse and has an end.",
)
