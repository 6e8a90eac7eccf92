"""C13: after fully connected layers, batch normalization adds little where it follows convolutions.

LeNet-5 as C1 trains it, with batch normalization nowhere, after the convolutions, after the hidden
fully connected layers, and after both. The first and the last of these arms are C1's own runs.

Each arm is measured by test accuracy averaged over the epochs, C1's first endpoint: that is where
C1 sees what batch normalization gains. Endpoints, fixed before any run of the claim's seeds. Both
must hold for *supported*:

* it helps after the convolutions: that accuracy of conv less that of none; it matters from one
  point (0.01);
* it adds little after the fully connected layers: one point less what both gain over conv. That
  something is small is shown by an interval that lies below a bound, not by one that holds zero,
  so this is above zero where the gain is surely below a point, and below zero where it is surely
  above. A loss counts as little.

For information: what fc gains by itself over none, and what both gain over conv in test accuracy
after the last epoch and in the training loss of it.

Tried before, on seed 100, which is no seed of the claim: five epochs of 10,000 images with each
arm, to see what a run costs and that all learn. There both gained 7 points over conv; nothing was
changed because of it.
"""

from __future__ import annotations

import dataclasses
from statistics import fmean

from normkit.lab.claims import c01
from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset
from normkit.lab.claims.parts import (
    WITH,
    WITHOUT,
    differences,
    figures,
    final_loss,
    learned,
    metric_chart,
    seed_table,
)
from normkit.lab.claims.sweeps import line_over, mean_of, percent
from normkit.lab.config import RunConfig
from normkit.lab.findings import Chart, Line, Reference, Table
from normkit.lab.runs import Run
from normkit.lab.verdicts import paired_test

NONE = "none"
CONV = "conv"
FC = "fc"
BOTH = "both"
ARMS = {
    NONE: "no BN",
    CONV: "BN after convolutions",
    FC: "BN after dense layers",
    BOTH: "BN after both",
}
"""By arm: what it is, in words."""
PUBLISHED = {NONE: fmean(c01.PUBLISHED[WITHOUT]) / 100, BOTH: fmean(c01.PUBLISHED[WITH]) / 100}
mean_accuracy = c01.ACCURACY.read
HELPS = 0.01
LITTLE = 0.01

SEEDS: dict[Preset, int] = {"quick": 3, "full": 5, "paper": 20}
"""Those of C1's seeds that the two further arms are trained on too."""


def plan(preset: Preset, available: Available) -> Arms:
    """C1's runs, and the same with batch normalization in one of the two places."""

    def make(arm: str, seed: int) -> RunConfig:
        run = next(
            config
            for name, config in c01.PLAN(preset, available)
            if config.seed == seed and name == (WITHOUT if arm == NONE else WITH)
        )
        if arm in (NONE, BOTH):
            return run
        return dataclasses.replace(run, model_options=(("norm_at", arm),))

    return [(arm, make(arm, seed)) for seed in range(SEEDS[preset]) for arm in ARMS]


def last(run: Run) -> float | None:
    """Test accuracy after the last epoch."""
    return run.last("test_accuracy")


def judge(evidence: Evidence) -> Judgement:
    """Compare the places seed by seed."""
    first = evidence.pairs(CONV, NONE)
    second = evidence.pairs(BOTH, CONV)
    gains = differences(second, mean_accuracy)
    helps = paired_test(
        "Helps after convolutions (decides): how much higher is mean test accuracy than with none?",
        differences(first, mean_accuracy),
        unit="accuracy",
        smallest=HELPS,
    )
    little = paired_test(
        "Adds little after dense layers (decides): how far below one point is what both gain over "
        "conv?",
        [LITTLE - gain for gain in gains],
        unit="accuracy",
    )
    gain = paired_test(
        "For information: what is that gain?", gains, unit="accuracy", smallest=LITTLE
    )
    alone = paired_test(
        "For information: how much higher is it with BN after dense layers only than with none?",
        differences(evidence.pairs(FC, NONE), mean_accuracy),
        unit="accuracy",
        smallest=HELPS,
    )
    final = paired_test(
        "For information: what do both gain over conv in test accuracy after the last epoch?",
        differences(second, last),
        unit="accuracy",
        smallest=LITTLE,
    )
    loss = paired_test(
        "For information: how much lower is the training loss of the last epoch than with conv?",
        [-each for each in differences(second, final_loss)],
        unit="cross-entropy, nats",
        smallest=0.01,
    )
    charts = [
        _places(evidence),
        metric_chart(
            evidence,
            "test_accuracy",
            key="accuracy",
            title="Test accuracy after each epoch",
            y_label="test accuracy",
        ),
    ]
    return Judgement(
        sentence=(
            f"In test accuracy averaged over the epochs, BN after the convolutions gains "
            f"{figures(helps, scale=100)} points over none, and BN after the dense layers too "
            f"{figures(gain, scale=100)} points more ({evidence.coverage(len(second))}, 95 % "
            "intervals)."
        ),
        decides=[helps, little if learned(evidence.of(BOTH)) else None],
        information=[gain, alone, final, loss],
        charts=[chart for chart in charts if chart],
        tables=(
            _table(evidence),
            seed_table(
                evidence,
                (
                    ("mean test accuracy", mean_accuracy),
                    ("last test accuracy", last),
                    ("last training loss", final_loss),
                ),
            ),
        ),
    )


def _places(evidence: Evidence) -> Chart | None:
    at = list(ARMS)
    ours = line_over(
        "ours",
        "",
        [(at.index(arm), evidence.of(arm)) for arm in at],
        mean_accuracy,
        scale=100,
    )
    if ours is None:
        return None
    published = Line(
        "the article's LeNet-5",
        tuple(float(at.index(arm)) for arm in PUBLISHED),
        tuple(100 * value for value in PUBLISHED.values()),
        role="published",
    )
    words = "; ".join(
        f"{ARMS[arm]} {'unknown' if value is None else f'{value:.1f} %'}"
        for arm, value in zip(at, ours.y, strict=True)
    )
    return Chart(
        key="places",
        title="Test accuracy by where BN stands, mean of the epochs",
        x_label="where BN stands",
        y_label="test accuracy, %",
        lines=(ours, published),
        text=(
            f"Test accuracy averaged over the epochs, ours: {words}. Whiskers are 95 % intervals "
            "of the mean over the seeds; the seeds are paired, so differences are surer than these "
            "look."
        ),
        kind="dots",
        rows=tuple(ARMS.values()),
    )


def _table(evidence: Evidence) -> Table:
    rows = []
    for arm, words in ARMS.items():
        runs = evidence.of(arm)
        loss = mean_of(runs, final_loss)
        rows.append(
            (
                words,
                percent(mean_of(runs, mean_accuracy), 2),
                percent(mean_of(runs, last), 2),
                None if loss is None else round(loss, 3),
                percent(PUBLISHED.get(arm), 2),
            )
        )
    return Table(
        "places",
        "By where BN stands, mean over the seeds, and the article's LeNet-5",
        (
            "arm",
            "mean test accuracy, %",
            "last test accuracy, %",
            "last training loss, nats",
            "published, mean test accuracy, %",
        ),
        tuple(rows),
    )


CLAIM = Claim(
    key="C13",
    title="After fully connected layers BN adds little where it follows the convolutions",
    statement=(
        "A network whose convolutions are followed by batch normalization has most of its benefit; "
        "to normalise after the fully connected layers as well adds little."
    ),
    sources=(
        Reference(
            "Notes on batch normalization (articles)",
            "said of networks with BN after the convolutions; no figures of the four placements "
            "are given",
        ),
        Reference(
            "An implementation of batch normalization in PyTorch (article), LeNet-5 on "
            "Fashion-MNIST",
            "test accuracy, mean of epochs 1–5: BN after all layers .8982, without .8756; BN in "
            "one place was not tried",
        ),
        Reference(
            "Ioffe & Szegedy 2015, Batch Normalization, §4.2",
            "BN after every convolution; but for the softmax layer their Inception has no fully "
            "connected layers",
            "https://arxiv.org/abs/1502.03167",
        ),
    ),
    prediction=(
        "BN after the convolutions gains a point or more over none; after the fully connected "
        "layers as well, less than a point more."
    ),
    decision=(
        "Both, of test accuracy averaged over the epochs: conv less none (matters from 0.01), and "
        "0.01 less the gain of both over conv above zero; 95 % t intervals of the paired "
        "differences."
    ),
    plan=plan,
    judge=judge,
    setup=(("BN stands", "by arm: " + "; ".join(f"{k}: {v}" for k, v in ARMS.items())),),
    demo=False,
    differs=(
        "Nearly all of LeNet-5's weights are in its fully connected layers, which is not so in "
        "the networks with BN after their convolutions that the source speaks of. Five epochs are "
        "few, too: what is gained may be speed rather than accuracy, and the mean over the epochs "
        "counts it in full."
    ),
)
