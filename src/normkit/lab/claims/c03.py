"""C3: batch normalization bears larger learning rates.

LeNet-5 with ReLU is trained over a grid of learning rates, with and without. A run *trains* at a
rate if the mean training loss of its last epoch is below 90 % of that of guessing, that is below
0.9 · ln 10 = 2.07. The source's plain network, which stops near 2.25 at a rate of 0.5, did not
train by this rule.

Endpoint, fixed before any run: the decimal logarithm of the largest rate of the grid at which the
arm trains, seed by seed (one step of the grid below its first rate if it trains nowhere). The grid
has three rates per decade, and the reading is no finer than its steps; the interval takes that
into account. The smallest difference that would matter is a tenth of a decade. An arm that still
trains at the last rate of the grid bears at least that much; the difference is then too small, not
too large.
"""

from __future__ import annotations

import functools
import math
from statistics import fmean

from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset, Scale
from normkit.lab.claims.parts import (
    CHANCE,
    WITH,
    WITHOUT,
    differences,
    figures,
    final_loss,
    on_and_off,
)
from normkit.lab.config import RunConfig
from normkit.lab.findings import Chart, Line, Reference, Table
from normkit.lab.runs import Run
from normkit.lab.verdicts import interval, paired_test

TRAINS = 0.9
GRID = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
STEP = 1 / 3  # of a decade, from one rate to the next
ROUNDING = STEP / math.sqrt(6)
"""Of a difference of two limits: each is rounded to a step, with a variance of step²/12, and alike
for all seeds. One step is not surely above zero with it."""
SMALLEST = 0.1
SOURCE_RATE = 0.5


SCALES: dict[Preset, Scale] = {
    "quick": Scale(seeds=5, train=10_000, test=1_000, epochs=2),
    "full": Scale(seeds=6, train=10_000, test=1_000, epochs=2),
    "paper": Scale(seeds=10, train=60_000, test=10_000, epochs=5),
}


def plan(preset: Preset, available: Available) -> Arms:
    """LeNet-5 with ReLU, SGD at each rate of the grid, batch size 256, with and without."""
    scale = SCALES[preset]

    def make(lr: float, norm: str, seed: int) -> RunConfig:
        return RunConfig(
            model="lenet5",
            norm=norm,
            lr=lr,
            batch_size=256,
            epochs=scale.epochs,
            seed=seed,
            **available.at_most(scale.train, scale.test),
        )

    by_seed = [on_and_off(functools.partial(make, lr), scale.seeds) for lr in GRID]
    # Seed by seed, so that a study that is cut off has whole grids.
    return sorted((arm for arms in by_seed for arm in arms), key=lambda arm: arm[1].seed)


def trains(run: Run) -> bool:
    """Whether the last epoch's training loss is clearly below that of guessing."""
    loss = final_loss(run)
    return loss is not None and loss < TRAINS * CHANCE


def largest(evidence: Evidence, arm: str, seed: int) -> float | None:
    """log10 of the largest rate at which the arm trains; None until its whole grid is run."""
    runs = evidence.of(arm, seed=seed)
    if len(runs) < len(GRID):
        return None
    rates = [run.config.lr for run in runs if trains(run)]
    return math.log10(max(rates)) if rates else math.log10(GRID[0]) - STEP


def judge(evidence: Evidence) -> Judgement:
    """Find where each arm stops training, seed by seed, and compare."""
    limits = {
        seed: (largest(evidence, WITH, seed), largest(evidence, WITHOUT, seed))
        for seed in evidence.seeds
    }
    gains = [a - b for a, b in limits.values() if a is not None and b is not None]
    rate = paired_test(
        "Decides: by how many decades is the largest learning rate at which it trains higher?",
        gains,
        unit="decades of learning rate (log10)",
        smallest=SMALLEST,
        shared=ROUNDING,
    )
    at_source = paired_test(
        f"For information: how much lower is the last epoch's training loss at {SOURCE_RATE}?",
        [-d for d in differences(evidence.pairs(WITH, WITHOUT, lr=SOURCE_RATE), final_loss)],
        unit="cross-entropy, nats",
        smallest=0.01,
    )
    return Judgement(
        sentence=(
            f"The largest learning rate at which the network trains is higher with BN by "
            f"{figures(rate)} decades ({evidence.coverage(len(gains))}, 95 % interval); at "
            f"{SOURCE_RATE} its last epoch's training loss is lower by "
            f"{figures(at_source, digits=3)}."
        ),
        decides=[rate],
        information=[at_source],
        charts=[chart for chart in [_chart(evidence)] if chart],
        tables=(_grid_table(evidence), _limit_table(evidence)),
    )


def _chart(evidence: Evidence) -> Chart | None:
    lines = []
    for arm in evidence.arms:
        means, lows, highs = [], [], []
        for lr in GRID:
            losses = [loss for run in evidence.of(arm, lr=lr) for loss in [final_loss(run)] if loss]
            mean = low = high = None
            if len(losses) > 1:
                mean, low, high = interval(losses)
            elif losses:
                mean = losses[0]
            means.append(mean)
            lows.append(low)
            highs.append(high)
        if any(mean is not None for mean in means):
            lines.append(Line(arm, GRID, tuple(means), tuple(lows), tuple(highs), arm=arm))
    if not lines:
        return None
    theory = Line("guessing, ln 10", (GRID[0], GRID[-1]), (CHANCE, CHANCE), role="theory")
    published = Line(
        "without BN, published", (SOURCE_RATE,), (2.25,), role="published", arm=WITHOUT
    )
    return Chart(
        key="rates",
        title="Training loss of the last epoch by learning rate",
        x_label="learning rate",
        y_label="cross-entropy (nats)",
        lines=(*lines, theory, published),
        text=(
            "Mean training loss of the last epoch at each learning rate, with and without BN, "
            "with the 95 % interval of the mean. A run whose loss was not finite counts as "
            "guessing, ln 10 = 2.303."
        ),
        x_log=True,
        markers=True,
    )


def _grid_table(evidence: Evidence) -> Table:
    rows: list[tuple[str | float | int | None, ...]] = []
    for lr in GRID:
        row: list[str | float | int | None] = [lr]
        for arm in (WITH, WITHOUT):
            runs = evidence.of(arm, lr=lr)
            losses = [loss for run in runs for loss in [final_loss(run)] if loss is not None]
            row.append(round(fmean(losses), 3) if losses else None)
            row.append(f"{sum(map(trains, runs))} of {len(runs)}")
        rows.append(tuple(row))
    columns = (
        "learning rate",
        f"loss {WITH}",
        f"train {WITH}",
        f"loss {WITHOUT}",
        f"train {WITHOUT}",
    )
    return Table(
        "grid", "Mean loss of the last epoch, and how many runs train", columns, rows=(*rows,)
    )


def _limit_table(evidence: Evidence) -> Table:
    def text(limit: float | None) -> str | None:
        if limit is None:
            return None
        rate = 10**limit
        if rate < GRID[0] * 0.99:
            return f"none from {GRID[0]:g}"
        return f"{rate:g} or more" if rate > GRID[-1] * 0.99 else f"{rate:g}"

    rows = tuple(
        (seed, text(largest(evidence, WITH, seed)), text(largest(evidence, WITHOUT, seed)))
        for seed in evidence.seeds
    )
    return Table(
        "limits", "The largest rate at which each arm trains", ("seed", WITH, WITHOUT), rows
    )


CLAIM = Claim(
    key="C3",
    title="Batch normalization bears larger learning rates",
    statement=(
        "With batch normalization a network still trains at learning rates at which the same "
        "network without it does not learn at all."
    ),
    sources=(
        Reference(
            "An implementation of batch normalization in PyTorch (article), LeNet-5 on "
            "Fashion-MNIST",
            "at a learning rate of 0.5 the network without BN stops near a loss of 2.25; with BN "
            "the loss gets lower and is steadier",
        ),
        Reference(
            "Ioffe & Szegedy 2015, Batch Normalization, §3.3 and §4.2",
            "Inception with BN trains at 5 and at 30 times the learning rate; without, at 5 times "
            "its parameters reach machine infinity",
            "https://arxiv.org/abs/1502.03167",
        ),
    ),
    prediction=(
        "The largest learning rate at which the loss gets below 0.9 · ln 10 is higher with BN, and "
        "at 0.5 its loss is lower."
    ),
    decision=(
        "log10 of the largest learning rate of the grid at which a run trains (last epoch's mean "
        "training loss below 2.07; matters from 0.1 decade); 95 % t interval of the paired "
        "differences, never narrower than the grid can tell."
    ),
    plan=plan,
    judge=judge,
    differs=(
        "The source saw a single rate, 0.5. Whether the plain network trains there depends on its "
        "first weights and the order of its images, so another seed may tell otherwise; with ours "
        "it may well train at 0.5 and stop later. A rate counts as borne here where a tenth of "
        "guessing's loss is gone, however badly the network learns, and the grid is coarse and "
        "has an end."
    ),
)
