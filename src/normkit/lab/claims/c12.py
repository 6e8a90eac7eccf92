"""C12: with batch normalization, early results vary more from run to run.

The runs are C1's: LeNet-5 with and without, the same seeds, and as many more seeds as it takes to
have ten, for a spread needs more of them than a mean. Early is after the first and the second
epoch. A seed decides the first weights, the order of the images and, where not all are taken,
which are; both arms share all three.

Endpoint, fixed before the further seeds were run and before anybody asked how far C1's own lie
apart: test accuracy with the statistics remembered, as everybody evaluates; how many times its
standard deviation over the seeds is doubled by BN (binary logarithm of the ratio, by
:func:`normkit.lab.verdicts.spread_ratios`, which says how and why), the mean of epochs 1 and 2. It
matters from half a doubling, a ratio of 1.41.

For information: the same of the test loss; of the last epoch's accuracy, where the claim says
nothing of a difference; and of the training loss, the mean over the first two epochs. The training
loss is read with each batch's own statistics: what varies there is the learning, and what varies
only in the test scores is the moving average (C24).

No trials.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from statistics import fmean, stdev

from normkit.lab.claims import c01
from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset
from normkit.lab.claims.parts import WITH, WITHOUT, extremes, seed_table
from normkit.lab.findings import Chart, Comparison, Line, Reference, Table
from normkit.lab.runs import Run
from normkit.lab.verdicts import paired_test, spread_ratios

SEEDS = 10
EARLY = (1, 2)
SMALLEST = 0.5
UNIT = "doublings (log2 of the ratio)"

Value = Callable[[Run], float | None]


def plan(preset: Preset, available: Available) -> Arms:
    """C1's arms, with ten seeds or as many as C1 has."""
    templates = dict(c01.PLAN(preset, available))
    planned = {config.seed for _, config in c01.PLAN(preset, available)}
    return [
        (arm, dataclasses.replace(templates[arm], seed=seed))
        for seed in range(max(SEEDS, len(planned)))
        for arm in (WITH, WITHOUT)
    ]


def after(run: Run, metric: str, epoch: int) -> float | None:
    """A metric after an epoch, counted from 1, or -1 for the last."""
    values = run.by_epoch(metric)
    index = epoch - 1 if epoch > 0 else epoch
    return values[index] if -len(values) <= index < len(values) else None


def doublings(evidence: Evidence, metric: str, epochs: tuple[int, ...]) -> list[float]:
    """How many times BN doubles the spread after these epochs, on average: one value for a seed.

    Seeds in which a run has no value (it diverged before) are left out.
    """
    pairs = evidence.pairs(WITH, WITHOUT)
    rows = [[after(run, metric, epoch) for epoch in epochs for run in pair] for pair in pairs]
    whole = [row for row in rows if None not in row]
    step = 1 / pairs[0][0].config.test_images if pairs and metric == "test_accuracy" else 0.0
    columns = list(zip(*whole, strict=True))  # with, without, epoch after epoch
    ratios = [
        spread_ratios(one, other, resolution=step)
        for one, other in zip(columns[::2], columns[1::2], strict=True)
    ]
    return [fmean(each) for each in zip(*ratios, strict=True)]


def judge(evidence: Evidence) -> Judgement:
    """Compare the spreads over the seeds."""

    def spread(question: str, metric: str, epochs: tuple[int, ...]) -> Comparison | None:
        values = doublings(evidence, metric, epochs)
        return paired_test(question, values, unit=UNIT, smallest=SMALLEST)

    again = "For information: and that of"
    early = spread(
        "Varies more (decides): how many times does BN double the standard deviation of test "
        "accuracy over the seeds, after epochs 1 and 2?",
        "test_accuracy",
        EARLY,
    )
    others = (
        spread(f"{again} the test loss, after epochs 1 and 2?", "test_loss", EARLY),
        spread(f"{again} the training loss, over epochs 1 and 2?", "epoch_train_loss", EARLY),
        spread(f"{again} test accuracy, after the last epoch?", "test_accuracy", (-1,)),
    )
    return Judgement(
        sentence=(
            f"After the first two epochs the standard deviation of test accuracy over the seeds is "
            f"{_times(early)} as large with BN as without; after the last, {_times(others[2])} "
            f"({evidence.coverage(len(evidence.pairs(WITH, WITHOUT)))}, 95 % intervals)."
        ),
        decides=(early,),
        information=others,
        charts=[chart for chart in (_range_chart(evidence), _spread_chart(evidence)) if chart],
        tables=(_spread_table(evidence), _seed_table(evidence)),
    )


def _times(found: Comparison | None) -> str:
    if found is None:
        return "not yet known how many times"
    effect, low, high = (2**value for value in (found.effect, found.low, found.high))
    return f"{effect:.1f} [{low:.1f}, {high:.1f}] times"


def _epochs(evidence: Evidence) -> range:
    return range(1, max((run.config.epochs for run in evidence.runs), default=0) + 1)


def _range_chart(evidence: Evidence) -> Chart | None:
    x = _epochs(evidence)
    lines = []
    for arm in (WITH, WITHOUT):
        rows = [run.by_epoch("test_accuracy") for run in evidence.of(arm)]
        line = extremes(f"{arm} (median of {len(rows)})", arm, x, rows) if x else None
        if line:
            lines.append(line)
    if not lines:
        return None
    return Chart(
        key="range",
        title="How far the seeds lie apart after each epoch",
        x_label="epoch",
        y_label="test accuracy",
        lines=tuple(lines),
        text=(
            "Test accuracy after each epoch: the line is the median of the seeds, the band goes "
            "from the least to the greatest of them. "
            + "; ".join(f"{line.arm}: {_ends(line)}" for line in lines)
            + "."
        ),
        markers=True,
    )


def _ends(line: Line) -> str:
    low, high = line.low[0], line.high[0]
    return "epoch 1 unknown" if low is None or high is None else f"epoch 1 {low:.3f} to {high:.3f}"


def _deviation(evidence: Evidence, arm: str, metric: str, epoch: int) -> float | None:
    values = [
        value
        for run in evidence.of(arm)
        for value in [after(run, metric, epoch)]
        if value is not None
    ]
    return stdev(values) if len(values) > 1 else None


def _spread_chart(evidence: Evidence) -> Chart | None:
    x = _epochs(evidence)
    lines = [
        Line(arm, tuple(x), tuple(None if y is None else 100 * y for y in deviations), arm=arm)
        for arm in (WITH, WITHOUT)
        for deviations in [[_deviation(evidence, arm, "test_accuracy", epoch) for epoch in x]]
        if any(y is not None for y in deviations)
    ]
    if not lines:
        return None
    return Chart(
        key="spread",
        title="Standard deviation of test accuracy over the seeds",
        x_label="epoch",
        y_label="standard deviation (points)",
        lines=tuple(lines),
        text=(
            "Standard deviation over the seeds of test accuracy after each epoch, in points. "
            + "; ".join(
                f"{line.arm}: " + ", ".join("unknown" if y is None else f"{y:.2f}" for y in line.y)
                for line in lines
            )
            + "."
        ),
        markers=True,
    )


def _spread_table(evidence: Evidence) -> Table:
    rows: list[tuple[str | float | int | None, ...]] = []
    for metric, name, scale in (
        ("test_accuracy", "test accuracy, points", 100),
        ("test_loss", "test loss, nats", 1),
        ("epoch_train_loss", "training loss, nats", 1),
    ):
        for epoch in _epochs(evidence):
            one, other = (_deviation(evidence, arm, metric, epoch) for arm in (WITH, WITHOUT))
            rows.append(
                (
                    name,
                    epoch,
                    *(None if each is None else round(scale * each, 3) for each in (one, other)),
                    round(one / other, 2) if one is not None and other else None,
                )
            )
    return Table(
        "spread",
        "Standard deviation over the seeds, and over the published builds of d2l's LeNet",
        ("of", "epoch", WITH, WITHOUT, "ratio"),
        (*rows, ("test accuracy, points, published", 10, 6.7, 1.5, 4.5)),
    )


def _seed_table(evidence: Evidence) -> Table:
    columns: list[tuple[str, Value]] = [
        (f"epoch {epoch}", functools.partial(after, metric="test_accuracy", epoch=epoch))
        for epoch in _epochs(evidence)
    ]
    return seed_table(evidence, columns, title="Test accuracy after each epoch, seed by seed")


CLAIM = Claim(
    key="C12",
    title="With batch normalization, early results vary more from run to run",
    statement=(
        "Trained again with other random numbers, a network with batch normalization gives "
        "results after its first epochs that differ more than those of the same network without."
    ),
    sources=(
        Reference(
            "Notes on batch normalization from a Bayesian view (article)",
            "early results vary more with BN; no figures are given",
        ),
        Reference(
            "Dive into Deep Learning (d2l), LeNet with and without BN, 85 published builds",
            "standard deviation of test accuracy over the builds, after epoch 10: .067 with BN, "
            ".015 without; of earlier epochs none is told",
            "https://d2l.ai/chapter_convolutional-modern/batch-norm.html",
        ),
    ),
    prediction=(
        "After epochs 1 and 2 the standard deviation of test accuracy over the seeds is larger "
        "with BN, for the statistics remembered lag behind weights that move fast (C24)."
    ),
    decision=(
        "The standard deviation over the seeds of test accuracy, with BN against without, mean of "
        "the binary logarithms of the ratios after epochs 1 and 2 (matters from 0.5, a ratio of "
        "1.41); 95 % interval of the ratio by the jackknife."
    ),
    plan=plan,
    judge=judge,
    setup=(
        (
            "what a seed decides",
            "first weights, the order of the images and, where not all are taken, which are",
        ),
    ),
    demo=False,
    differs=(
        "The source reports no figures and names no network for this; a few runs beside each other "
        "do not tell such a difference from chance. How far the moving average lags, and with it "
        "the spread of the first test scores, depends on the number of steps in an epoch."
    ),
)
