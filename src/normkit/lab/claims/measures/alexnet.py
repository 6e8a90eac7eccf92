"""AlexNet, far too large for its images, with BN, dropout, both and neither: runs of C4 and C8.

A thousand images of Fashion-MNIST are few enough to learn by heart within a minute, so that what is
left to see is generalisation; of CIFAR-100 there are five times as many. Except in the paper preset
AlexNet has a quarter of its channels and hidden layers of 1024. Adam, because under SGD with
momentum plain AlexNet with dropout stayed at guessing for epochs; the source does not say what it
used.

Training accuracy and loss are read with the weights after each epoch in evaluation mode: what is
recorded in training belongs to many weights, with dropout on.

Pilot runs (seed 100, not used for the verdicts): eight with SGD, 25 to 50 epochs (dropout alone
ended at a training accuracy of 60 to 95 %); two with Adam at a constant rate (95 and 99 %); four
with this recipe and 60 epochs, of which full does 40 for their cost. Quick first had 30 epochs, on
its own seeds; dropout ended at 85 %, which is no test of generalisation, so it got 45. The second
edition evaluates on all test images, every fourth epoch: with 1,000 fixed ones their choice alone
was worth 1.3 points (in two trials of C4 with all of them +2.3 and +1.7).

In AlexNet dropout stands before the hidden dense layers, so with BN before a normalizer, whose
running variance then is not that of the evaluation, in which nothing is dropped (Li et al. 2018,
arXiv 1801.05134). A fifth arm, without trials, has it behind the last normalizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from normkit.lab.claims.claim import Arms, Available, Evidence, Preset
from normkit.lab.claims.sources import ARTICLE
from normkit.lab.claims.study import (
    BN,
    NATS,
    PERCENT,
    TEST,
    TEST_LOSS,
    WITH,
    WITHOUT,
    At,
    ByArm,
    Plan,
    Scale,
    along,
    last,
    mean_of,
    quarter,
    while_training,
)

NEITHER, ONLY_BN, DROPOUT, BOTH = "neither", "BN", "dropout", "BN and dropout"
LAST = "BN and dropout before the output"
COLOURS = {ONLY_BN: WITH, NEITHER: WITHOUT}
PUBLISHED = {DROPOUT: (97.3, 40, 57.3), ONLY_BN: (99.9, 58, 41.9)}
SOURCE = ARTICLE.says(
    "; ".join(
        f"{arm}: training accuracy {train:g} %, test about {test:g} %"
        for arm, (train, test, _) in PUBLISHED.items()
    ),
    "AlexNet on CIFAR-100, 100 epochs",
)
SETUP = (
    ("training accuracy and loss", "of training images with each epoch's weights, dropout off"),
    ("late", "the mean over the last quarter of the epochs"),
)


def _options(dropout: float, *more: tuple[str, str]) -> Callable[[At], tuple[Any, ...]]:
    small = (("hidden", 1024), ("width", 16))
    return lambda at: (("dropout", dropout), *more, *(() if at.preset == "paper" else small))


PLAN = Plan(
    scales={
        "quick": Scale(seeds=3, train=500, test=2_000, epochs=45),
        "full": Scale(seeds=6, train=1_000, test=10_000, epochs=40),
        "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=100),
    },
    arms={
        NEITHER: {"norm": "none", "model_options": _options(0.0)},
        ONLY_BN: {"norm": BN, "model_options": _options(0.0)},
        DROPOUT: {"norm": "none", "model_options": _options(0.5)},
        BOTH: {"norm": BN, "model_options": _options(0.5)},
        LAST: {"norm": BN, "model_options": _options(0.5, ("dropout_at", "output"))},
    },
    base={
        "model": "alexnet",
        "optimizer": "adam",
        "lr": 0.001,
        "schedule": "cosine",
        "size": lambda at: at.data.side,
        "evaluations": lambda at: (("train", min(at.train, at.scale.test)),),
    },
    presets={
        "quick": {"batch_size": 25, "evaluate_every": 5},
        "full": {"batch_size": 50, "evaluate_every": 4},
        "paper": {"batch_size": 128},
    },
)


def plan(preset: Preset, available: Available, arms: tuple[str, ...] = (DROPOUT, ONLY_BN)) -> Arms:
    """The runs of these arms; a hundred classes have five times as many images as ten."""
    scale = PLAN.scales.get(preset)
    if scale is None:
        return []
    if available.classes > 10:
        scale = dataclasses.replace(scale, train=5 * scale.train)
    chosen = {arm: PLAN.arms[arm] for arm in arms}
    return dataclasses.replace(PLAN, scales={preset: scale}, arms=chosen)(preset, available)


def training(evidence: Evidence) -> str:
    """Each arm's late training accuracy: an arm that did not learn has no gap either."""
    means = ((arm, mean_of(evidence.of(arm), LATE_TRAINED)) for arm in evidence.arms)
    return ", ".join(f"{arm} {PERCENT.text(mean)}" for arm, mean in means)


TRAINED = last("test_accuracy", "training accuracy", under=while_training)
TRAINED_LOSS = last("test_loss", "training loss", NATS, under=while_training)
GAP = TRAINED.minus(TEST, "gap")
LATE_TRAINED, LATE_GAP = quarter(TRAINED, "late training accuracy"), quarter(GAP, "late gap")
LATE_TEST, LATE_LOSS = quarter(TEST, "late test accuracy"), quarter(TEST_LOSS, "late test loss")
LATE_TRAINED_LOSS = quarter(TRAINED_LOSS, "late training loss")
TEST_CHART = along(TEST, "Test accuracy after each epoch", "test accuracy", "test", band="range")
GAP_CHART = along(
    GAP, "Gap between training and test accuracy", "training less test accuracy", band="range"
)
TRAINED_CHART = along(
    TRAINED,
    "Training accuracy after each epoch, dropout off",
    "training accuracy",
    "train",
    band="range",
)
LATE_TABLE = ByArm(
    (LATE_TRAINED, LATE_TEST, LATE_GAP, LATE_TRAINED_LOSS, LATE_LOSS),
    "Late in training, mean over the seeds",
    [(f"{arm}, published (CIFAR-100)", *row, None, None) for arm, row in PUBLISHED.items()],
    digits=(1, 1, 1, 3, 3),
)
