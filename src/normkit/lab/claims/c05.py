"""C5: batch normalization makes sigmoid networks trainable.

The source's setting: LeNet-5 with sigmoid, SGD at learning rate 1.0, batch size 256, five epochs. A
run that never left chance counts with the accuracy it has. Population statistics decide, for the
moving average of the few hundred steps lags (C24); the source's way stands beside them.

Pilot runs of the second edition: with BN .87 by population statistics, .39 by the moving average.
"""

from __future__ import annotations

from normkit.lab.claims.c01 import EVALUATED, RECALIBRATED
from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.sources import ARTICLE, IOFFE
from normkit.lab.claims.study import (
    NATS,
    PERCENT,
    TEST,
    TRAIN_LOSS,
    WITH,
    WITHOUT,
    Endpoint,
    Plan,
    Scale,
    Seeds,
    Series,
    along,
    along_steps,
    define,
    mean_of,
)


def means(evidence: Evidence) -> str:
    """Each arm's mean accuracy, and how many of its runs are at chance level."""
    words = []
    for arm in evidence.arms:
        runs = evidence.of(arm)
        stuck = sum(run.status == "diverged" for run in runs)
        words.append(
            f"{arm} {PERCENT.text(mean_of(runs, TEST))} ({stuck} of {len(runs)} runs no better "
            "than guessing)"
        )
    return ", ".join(words)


CLAIM = define(
    key="C5",
    title="Batch normalization makes sigmoid networks trainable",
    topic="training",
    statement="A network with sigmoid activations hardly learns, because a sigmoid far from zero "
    "passes almost no gradient. Batch normalization keeps its inputs near zero, and the network "
    "learns.",
    sources=(
        ARTICLE.says(
            "learning rate 1.0, batch size 256, 5 epochs; no accuracies are given",
            "LeNet-5 with sigmoid",
        ),
        IOFFE.says(
            "Inception with sigmoid and BN reaches 69.8 %; without BN it never does better than "
            "guessing (0.1 %)",
            "§4.2.2",
        ),
    ),
    prediction="With BN test accuracy rises from the first epoch on; without, it stays near 10 %.",
    plan=Plan(
        scales={
            "quick": Scale(seeds=5, train=20_000, test=10_000, epochs=5),
            "full": Scale(seeds=5, train=30_000, test=10_000, epochs=5),
            "paper": Scale(seeds=20, train=60_000, test=10_000, epochs=5),
        },
        arms={WITH: EVALUATED, WITHOUT: {"norm": "none"}},
        base={"model": "lenet5", "act": "sigmoid", "lr": 1.0, "batch_size": 256},
    ),
    decides={
        "accuracy": Endpoint(
            "How much higher is test accuracy with BN after the last epoch, evaluated with "
            "population statistics?",
            RECALIBRATED.at(WITH) - TEST.at(WITHOUT),
            matters=5,
        ),
    },
    information={
        "moving": Endpoint(
            "How much higher is it with the moving average?",
            TEST.at(WITH) - TEST.at(WITHOUT),
            matters=5,
        ),
        "loss": Endpoint(
            "How much lower is the training loss of the last epoch with BN?",
            TRAIN_LOSS.at(WITHOUT) - TRAIN_LOSS.at(WITH),
            matters=0.1,
        ),
    },
    sentence="BN changes test accuracy after the last epoch by {accuracy} points, evaluated with "
    "population statistics, and by {moving} with the moving average: {means}",
    say={"means": means},
    source_setup={
        "network": "LeNet-5 with sigmoid",
        "data": "Fashion-MNIST, 60,000 training images",
        "steps": "5 epochs of batches of 256, learning rate 1.0",
        "figures": "none given",
    },
    figures="test accuracy after the last epoch, with BN minus without: {accuracy} points (moving "
    "average {moving})",
    at_scale=(
        IOFFE.agrees(
            "Inception with sigmoid: 69.8 % with BN, and without it never better than guessing, "
            "0.1 %",
            "ImageNet, §4.2.2",
        ),
    ),
    holds="In a network as shallow as LeNet-5, after five epochs at learning rate 1.0, BN changes "
    "test accuracy by {accuracy} points evaluated with population statistics, and by {moving} with "
    "the moving average, which lags behind weights that move fast.",
    practice="Before saturating activations such as a sigmoid, normalize. Recalibrate before you "
    "judge a network that was trained for few steps or at a large rate.",
    charts=(
        along(
            TEST,
            "Test accuracy after each epoch, sigmoid, learning rate 1.0",
            "test accuracy",
            series=(
                Series(WITH, RECALIBRATED.curve, "with BN, population statistics"),
                Series(WITH, TEST.curve, "with BN, moving average", WITH),
                Series(WITHOUT, TEST.curve),
            ),
        ),
        along_steps(
            "train_loss", "Training loss, sigmoid, learning rate 1.0", "cross-entropy", NATS
        ),
    ),
    tables=(Seeds((TEST, RECALIBRATED, TRAIN_LOSS)),),
    differs="Whether a plain network with sigmoid leaves chance level depends on its first weights "
    "and on the number of steps: it may stay there for most of training and then learn within an "
    "epoch. The source gives no accuracies, and its larger case, Inception, is far deeper than "
    "LeNet-5. From larger first weights the same network without BN does learn, at 0.9 (C24).",
)
