"""C10: a plain cumulative average of the statistics fails as training goes on.

The arms train alike and differ in how running statistics are averaged: over all batches since the
start with equal weights; exponentially, each batch replacing a twentieth; or the same without the
bias of the start, as Caffe does it (debiased). The same weights are read with the statistics of
each batch of 100 test images too. The quick preset has a fraction of the source's 12 to 60 epochs.

"As training goes on" compares the last gap with the smallest
(:mod:`normkit.lab.claims.measures.growth`).

Pilot runs (seed 100, not used for the verdict): that the network learns, and what it costs.
"""

from __future__ import annotations

from normkit.lab.claims.measures.growth import since_least
from normkit.lab.claims.sources import BAYES_NOTES, CAFFE_QUICK, WU_JOHNSON
from normkit.lab.claims.study import (
    BN,
    NUMBER,
    PERCENT,
    TRAIN_LOSS,
    ByArm,
    Curves,
    Endpoint,
    Measure,
    Plan,
    Scale,
    Seeds,
    Series,
    define,
    first,
    last,
)

CUMULATIVE = "cumulative"
EXPONENTIAL, DEBIASED = "exponential, decay 0.95", "debiased, decay 0.95"
OF_BATCH = ("batch", 100)
BATCH = last("test_accuracy", "batch statistics", under=OF_BATCH)
RUNNING = last("test_accuracy", "running statistics")
GAP = BATCH.minus(RUNNING, "gap")
FIRST_GAP = first(GAP, "first gap")
EPOCHS = Measure("epochs", lambda run: run.config.epochs, NUMBER)
CAFFE_NETWORK = {
    "model": "cifar10-quick",
    "norm": BN,
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 0.004,
    "batch_size": 100,
    "size": lambda at: at.data.side,
}
"""The fields of Caffe's quick network with its own recipe."""


CLAIM = define(
    key="C10",
    title="A plain cumulative average of the statistics fails as training goes on",
    topic="statistics",
    statement="Statistics averaged over all batches since the start, each with the same weight, "
    "describe weights that the network no longer has. Evaluation with them gets worse as training "
    "goes on. With an average that forgets, with a decay of 0.95, it does not.",
    sources=(
        BAYES_NOTES.says(
            "with the statistics averaged plainly 66 % against 74 % with batch statistics at epoch "
            "12, and 40 % by epoch 60; a decay of 0.95 repairs it",
            "CIFAR-10 quick in Caffe",
        ),
        CAFFE_QUICK,
    ),
    prediction="The cumulative average falls behind batch statistics by some points within a few "
    "epochs and further as they go on; the two averages with a decay stay with batch statistics.",
    plan=Plan(
        scales={
            "quick": Scale(seeds=5, train=5_000, test=2_000, epochs=5),
            "full": Scale(seeds=5, train=3_000, test=2_000, epochs=12),
            "paper": Scale(seeds=10, train=60_000, test=10_000, epochs=60),
        },
        arms={
            CUMULATIVE: {"norm_options": (("average", "cumulative"),)},
            EXPONENTIAL: {"norm_options": (("momentum", 0.05),)},
            DEBIASED: {"norm_options": (("average", "debiased"), ("momentum", 0.05))},
        },
        base=CAFFE_NETWORK | {"evaluations": (OF_BATCH,)},
    ),
    decides={
        "grows": Endpoint(
            "As training goes on: by how much has the gap between batch statistics and the "
            "cumulative average grown since it was smallest?",
            since_least(CUMULATIVE, GAP),
            matters=2,
        ),
        "fails": Endpoint(
            "It fails: how much higher is test accuracy after the last epoch with batch statistics "
            "than with the cumulative average of the same weights?",
            GAP.at(CUMULATIVE),
            matters=2,
        ),
        "repairs": Endpoint(
            "A decay repairs it: how much higher is it with an average of decay 0.95 than with the "
            "cumulative one?",
            RUNNING.at(EXPONENTIAL) - RUNNING.at(CUMULATIVE),
            matters=2,
        ),
    },
    information={
        "since_first": Endpoint(
            "By how much does the gap of the cumulative average grow from the first epoch to the "
            "last?",
            GAP.at(CUMULATIVE) - FIRST_GAP.at(CUMULATIVE),
            matters=2,
        ),
    },
    sentence="After the last epoch, test accuracy with batch statistics minus that with the "
    "cumulative average of the same weights is {fails} points; since this gap was smallest it has "
    "changed by {grows}. An average with decay 0.95 minus the cumulative one: {repairs} points",
    source_setup={
        "network": "CIFAR-10 quick, in Caffe",
        "data": "CIFAR-10, 50,000 training images",
        "steps": "12 and 60 epochs",
        "figures": "cumulative 66 % against 74 % with batch statistics at epoch 12; 40 % by epoch "
        "60",
    },
    figures="batch statistics minus the cumulative average: {fails} points, changed by {grows} "
    "since it was smallest; decay 0.95 minus the cumulative average: {repairs}",
    at_scale=(
        WU_JOHNSON.agrees(
            "as to statistics remembered from earlier weights: the moving average has 23.7 % error "
            "and 35.5 where statistics estimated anew from the final weights have 23.5 and 32.0, "
            "at normalization batch sizes of 32 and 2; a cumulative average is not tried",
            "ResNet-50 on ImageNet, §3",
        ),
    ),
    holds="At a constant rate, at which weights still move, the cumulative average is {fails} "
    "points from batch statistics after the last epoch, and this gap has changed by {grows} since "
    "it was smallest. An average that forgets changes the accuracy by {repairs} points.",
    practice="Use a cumulative average only over weights that stand still, as in recalibration. "
    "During training use an average that forgets, which is every framework's default.",
    charts=(
        Curves(
            "averages",
            "Test accuracy by the way running statistics are averaged",
            "epoch",
            "test accuracy",
            PERCENT,
            series=(
                *(Series(arm, RUNNING.curve) for arm in (CUMULATIVE, EXPONENTIAL, DEBIASED)),
                Series(EXPONENTIAL, BATCH.curve, "batch statistics at test", "batch statistics"),
            ),
        ),
    ),
    tables=(
        ByArm(
            (EPOCHS, RUNNING, BATCH),
            "Test accuracy after the last epoch: ours, and the source's on CIFAR-10",
            [
                ("cumulative, published (CIFAR-10)", 12, 66, 74),
                ("cumulative, published (CIFAR-10)", 60, 40, None),
            ],
        ),
        Seeds((RUNNING, BATCH, TRAIN_LOSS)),
    ),
    also=("cifar-10",),
    demo=False,
    differs="How far a plain average falls behind depends on how much the weights still move: far "
    "with a rate that stays high, many epochs and a hard task, little in a short training of an "
    "easy one. The source's network learned CIFAR-10 for up to 60 epochs; quick and full train for "
    "fewer, on fewer images.",
)
