"""C1: batch normalization converges faster and lower.

The claim says two things, and both must hold for *supported*. Endpoints, fixed before any run:

* faster: test accuracy averaged over the epochs 1 to 5, which is the area under the curve; the
  smallest difference that would matter is half a point (0.005);
* lower: mean training loss of the last epoch (that of guessing, ln 10, for a run whose loss was
  not finite); the smallest that would matter is 0.01.

Test accuracy after the last epoch is printed as well and decides nothing. Both arms use the same
learning rate, the source's question; what each does at its own best rate is C3's table.
"""

from __future__ import annotations

import functools
from statistics import fmean

from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset, Scale
from normkit.lab.claims.parts import (
    WITH,
    WITHOUT,
    differences,
    figures,
    final_loss,
    metric_chart,
    on_and_off,
    seed_table,
)
from normkit.lab.config import RunConfig
from normkit.lab.findings import Line, Reference
from normkit.lab.runs import Run
from normkit.lab.verdicts import compare

PUBLISHED = {
    WITH: (0.8859, 0.8976, 0.9013, 0.9040, 0.9023),
    WITHOUT: (0.8592, 0.8734, 0.8751, 0.8810, 0.8895),
}
FASTER = 0.005
LOWER = 0.01


SCALES: dict[Preset, Scale] = {
    "quick": Scale(seeds=5, train=20_000, test=10_000, epochs=5),
    "full": Scale(seeds=10, train=30_000, test=10_000, epochs=5),
    "paper": Scale(seeds=20, train=60_000, test=10_000, epochs=5),
}


def make(preset: Preset, available: Available, norm: str, seed: int) -> RunConfig:
    """LeNet-5 with ReLU, SGD at 0.1, batch size 256, five epochs."""
    scale = SCALES[preset]
    return RunConfig(
        model="lenet5",
        norm=norm,
        lr=0.1,
        batch_size=256,
        epochs=scale.epochs,
        seed=seed,
        **available.at_most(scale.train, scale.test),
    )


def plan(preset: Preset, available: Available) -> Arms:
    """With and without, seed by seed."""
    return on_and_off(functools.partial(make, preset, available), SCALES[preset].seeds)


def mean_accuracy(run: Run) -> float | None:
    """Test accuracy averaged over the epochs."""
    values = [value for value in run.by_epoch("test_accuracy") if value is not None]
    return fmean(values) if values else None


def judge(evidence: Evidence) -> Judgement:
    """Compare the two arms seed by seed."""
    pairs = evidence.pairs(WITH, WITHOUT)
    faster = compare(
        "Faster (decides): how much higher is test accuracy, averaged over the epochs?",
        differences(pairs, mean_accuracy),
        unit="accuracy",
        smallest=FASTER,
    )
    lower = compare(
        "Lower (decides): how much lower is the training loss of the last epoch?",
        [-d for d in differences(pairs, final_loss)],
        unit="cross-entropy, nats",
        smallest=LOWER,
    )
    final = compare(
        "For information: how much higher is test accuracy after the last epoch?",
        differences(pairs, lambda run: run.last("test_accuracy")),
        unit="accuracy",
        smallest=FASTER,
    )
    published = [
        Line(f"{arm}, published", tuple(range(1, 6)), values, role="published", arm=arm)
        for arm, values in PUBLISHED.items()
    ]
    charts = [
        metric_chart(
            evidence,
            "test_accuracy",
            key="accuracy",
            title="Test accuracy after each epoch",
            y_label="test accuracy",
            extra=published,
        ),
        metric_chart(
            evidence,
            "train_loss",
            key="loss",
            title="Training loss",
            y_label="cross-entropy (nats)",
            by="step",
        ),
    ]
    table = seed_table(
        evidence,
        (
            ("mean test accuracy", mean_accuracy),
            ("last test accuracy", lambda run: run.last("test_accuracy")),
            ("last training loss", final_loss),
        ),
    )
    return Judgement(
        sentence=(
            f"With BN, test accuracy averaged over the epochs differs by "
            f"{figures(faster, scale=100)} points and the last epoch's training loss is lower by "
            f"{figures(lower, digits=3)} ({evidence.coverage(len(pairs))}, 95 % intervals)."
        ),
        decides=[faster, lower],
        information=[final],
        charts=[chart for chart in charts if chart],
        tables=(table,),
    )


CLAIM = Claim(
    key="C1",
    title="Batch normalization converges faster and lower",
    statement=(
        "A network with batch normalization learns in fewer steps, and gets to a lower loss, than "
        "the same network without it."
    ),
    sources=(
        Reference(
            "An implementation of batch normalization in PyTorch (article), LeNet-5 on "
            "Fashion-MNIST",
            "test accuracy after epochs 1–5: with BN .8859 .8976 .9013 .9040 .9023, without .8592 "
            ".8734 .8751 .8810 .8895",
        ),
        Reference(
            "Ioffe & Szegedy 2015, Batch Normalization, Inception on ImageNet",
            "steps to 72.2 % and best accuracy: without 31.0 M, 72.2; with BN 13.3 M, 72.7; at "
            "five times the learning rate 2.1 M, 73.0; at thirty times 2.7 M, 74.8",
            "https://arxiv.org/abs/1502.03167",
        ),
    ),
    prediction=(
        "Test accuracy is higher in each of the first epochs, and the training loss of the last "
        "epoch is lower."
    ),
    decision=(
        "Both: test accuracy averaged over epochs 1–5 (matters from 0.005) and training loss of "
        "the last epoch (matters from 0.01); 95 % t interval of the paired differences."
    ),
    plan=plan,
    judge=judge,
    differs=(
        "The source has one run of each arm as far as it says, and one run says nothing of "
        "chance. How much BN gains depends on the learning rate, which is the same in both arms, "
        "and on the number of steps: with a rate that suits the plain network, or more epochs, "
        "the two come closer."
    ),
)
