"""C12: with batch normalization, early results vary more from run to run.

The runs are C1's and as many more seeds as make ten, because a spread needs more of them than a
mean. Early is after the first and the second epoch. The training loss is read with each batch's own
statistics: what varies there is the learning, and what varies only in the test is the moving
average (C24).
"""

from __future__ import annotations

import dataclasses

from normkit.lab.claims import c01
from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.measures.spread import after, deviation, halved, one_image
from normkit.lab.claims.sources import BAYES_NOTES, D2L
from normkit.lab.claims.study import (
    NATS,
    POINTS,
    TEST,
    TEST_LOSS,
    WITH,
    WITHOUT,
    Curves,
    Endpoint,
    Measure,
    Seeds,
    along,
    define,
    last,
)
from normkit.lab.findings import Table

LOSS = last("epoch_train_loss", "training loss", NATS)
EPOCHS = range(1, 6)
PLAN = dataclasses.replace(
    c01.PLAN,
    scales={
        preset: dataclasses.replace(scale, seeds=max(10, scale.seeds))
        for preset, scale in c01.PLAN.scales.items()
    },
)


def spread(question: str, measure: Measure, *epochs: int) -> Endpoint:
    """Compare the spreads over the seeds with BN and without, mean of these epochs."""
    read = [after(measure, epoch) for epoch in epochs]
    return Endpoint(
        question,
        halved(
            [(each.at(WITH), each.at(WITHOUT)) for each in read],
            one_image(WITH) if measure is TEST else lambda evidence: 0.0,
        ),
        matters=0.5,
        unit="doublings",
    )


def spread_table(evidence: Evidence) -> Table:
    """The standard deviation after each epoch, and that of the published builds."""
    rows: list[tuple[str | float | None, ...]] = []
    for name, measure in (
        ("test accuracy, points", TEST),
        ("test loss, nats", TEST_LOSS),
        ("training loss, nats", LOSS),
    ):
        unit = POINTS if measure is TEST else NATS
        for epoch in EPOCHS:
            both = [deviation(evidence.of(a), after(measure, epoch)) for a in (WITH, WITHOUT)]
            one, other = both
            ratio = round(one / other, 2) if one is not None and other else None
            rows.append((name, epoch, *(unit.cell(each, 3) for each in both), ratio))
    return Table(
        "spread",
        "Standard deviation over the seeds, and over the published builds of d2l's LeNet",
        ("of", "epoch", WITH, WITHOUT, "ratio"),
        (*rows, ("test accuracy, points, published", 10, 6.7, 1.5, 4.5)),
    )


CLAIM = define(
    key="C12",
    title="With batch normalization, early results vary more from run to run",
    topic="training",
    statement="Trained again with other random numbers, a network with batch normalization gives "
    "results after its first epochs that differ more than those of the same network without.",
    sources=(
        BAYES_NOTES.says("early results vary more with BN; no figures are given"),
        D2L.says(
            "standard deviation of test accuracy over the builds, after epoch 10: .067 with BN, "
            ".015 without; none is given for earlier epochs",
            "LeNet with and without BN, 85 published builds",
            D2L.url + "batch-norm.html",
        ),
    ),
    prediction="After epochs 1 and 2 the standard deviation of test accuracy over the seeds is "
    "larger with BN, because the running statistics lag behind weights that move fast (C24). (The "
    "first edition saw 0.8 times, and a trial 1.9 points with BN against 14.8 after epoch 1.)",
    plan=PLAN,
    decides={
        "early": spread(
            "How many times does BN double the standard deviation of test accuracy over the "
            "seeds, after epochs 1 and 2?",
            TEST, 1, 2,
        ),
    },
    information={
        "loss": spread(
            "How many times does BN double that of the test loss, after epochs 1 and 2?",
            TEST_LOSS, 1, 2,
        ),
        "train": spread(
            "How many times does BN double that of the training loss, over epochs 1 and 2?",
            LOSS, 1, 2,
        ),
        "last": spread(
            "How many times does BN double that of test accuracy, after the last epoch?",
            TEST, EPOCHS[-1],
        ),
    },
    rule="95 % intervals of the ratio by the jackknife",
    sentence="After the first two epochs the standard deviation of test accuracy over the seeds is "
    "{early:x2} times as large with BN as without; after the last, {last:x2} times",
    source_setup={
        "network": "not named",
        "data": "not named",
        "steps": "“early”",
        "figures": "none given",
    },
    figures="standard deviation of test accuracy over the seeds, with BN against without: after "
    "epochs 1 and 2 {early:x2} times, after the last {last:x2}",
    at_scale=(
        D2L.agrees(
            "as to the end of training with the moving average: standard deviation of test "
            "accuracy after epoch 10 of .067 with BN and .015 without",
            "LeNet, 85 published builds",
            D2L.url + "batch-norm.html",
        ),
    ),
    holds="The standard deviation of test accuracy with BN is {early:x2} times that without after "
    "the first two epochs, and {last:x2} times after the last. Of the training loss, in which the "
    "moving average has no part, it is {train:x2} times early: a network without BN may begin to "
    "learn sooner or later, by seed.",
    practice="Judge early results of any network by several seeds. With batch normalization, look "
    "at population statistics before you call a run unlucky.",
    charts=(
        Curves(
            "spread", "Standard deviation of test accuracy over the seeds", "epoch",
            "standard deviation", POINTS, TEST.curve, band="deviation",
        ),
        along(TEST, "How far apart the seeds are after each epoch", "test accuracy", band="range"),
    ),
    tables=(
        spread_table,
        Seeds(
            [after(TEST, epoch) for epoch in EPOCHS],
            "Test accuracy after each epoch, seed by seed",
        ),
    ),
    setup=(
        (
            "what a seed decides",
            "first weights, the order of the images and, where not all are taken, which are",
        ),
    ),
    demo=False,
    differs="The source reports no figures and names no network for this; a few runs beside each "
    "other do not tell such a difference from chance. How far the moving average lags, and with it "
    "the spread of the first test scores, depends on the number of steps in an epoch.",
)  # fmt: skip
