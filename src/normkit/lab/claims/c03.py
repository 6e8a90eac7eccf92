"""C3: batch normalization tolerates larger learning rates.

A run *trains* at a rate if the mean training loss of its last epoch is below 90 % of that of
guessing, 0.9 · ln 10 = 2.07; the source's plain network, which stops near 2.25 at 0.5, did not. The
grid has three rates per decade. An arm that trains at no rate counts one step below the first; one
that trains at the last rate tolerates at least that much, so that the difference is then too small.
A factor of two matters: less could be had by a search for the rate.

Pilot runs (seeds 100 and 101, not used for the verdict): the size of the tour gave a difference of
1.0 and 1.4 decades.
"""

from __future__ import annotations

import math

from normkit.lab.claims.measures import limits
from normkit.lab.claims.measures.limits import GRID, STEP, largest
from normkit.lab.claims.sources import ARTICLE, BJORCK, IOFFE
from normkit.lab.claims.study import (
    CHANCE_LOSS,
    ON_AND_OFF,
    TRAIN_LOSS,
    WITH,
    WITHOUT,
    Endpoint,
    Plan,
    Scale,
    by_setting,
    define,
    published,
)
from normkit.lab.findings import Line

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


CLAIM = define(
    key="C3",
    title="Batch normalization tolerates larger learning rates",
    topic="training",
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
    headline=True,
    prediction="The largest learning rate at which the loss falls below 0.9 · ln 10 is higher with "
    "BN, and at 0.5 its loss is lower.",
    plan=PLAN.touring(Scale(seeds=3, train=5_120, test=500, epochs=2)),
    decides={
        "rate": Endpoint(
            "By how many decades is the largest learning rate at which the network trains higher "
            "with BN?",
            largest(WITH) - largest(WITHOUT),
            matters=0.3,
            # Each of two limits is rounded to a step, alike for all seeds: a variance of step²/12.
            shared=STEP / math.sqrt(6),
        ),
    },
    information={
        "at_source": Endpoint(
            f"How much lower is the last epoch's training loss with BN at {SOURCE_RATE}?",
            TRAIN_LOSS.at(WITHOUT, lr=SOURCE_RATE) - TRAIN_LOSS.at(WITH, lr=SOURCE_RATE),
            matters=0.01,
        ),
    },
    rule="95 % t intervals of the paired differences, never narrower than the grid can tell",
    sentence="The largest learning rate at which the network trains is {rate:x10} times as large "
    f"with BN ({{rate}} decades). At {SOURCE_RATE} the last epoch's training loss without BN minus "
    "that with BN is {at_source} nats",
    source_setup={
        "network": "LeNet-5",
        "data": "Fashion-MNIST, 60,000 training images",
        "steps": "5 epochs",
        "figures": "at a rate of 0.5 the plain network stops near a loss of 2.25, and the network "
        "with BN goes lower (one run of each)",
    },
    figures="the largest rate that trains: {rate:x10} times as large with BN; loss at 0.5, without "
    "BN minus with, {at_source} nats",
    at_scale=(
        IOFFE.agrees(
            "with BN, and without dropout, Inception trains at 5 and at 30 times the rate and ends "
            "higher, 73.0 and 74.8 % against 72.2; without BN, 5 times the rate ends at machine "
            "infinity",
            "Inception on ImageNet, §3.3 and §4.2",
        ),
        BJORCK.agrees(
            "larger rates are given as the cause of its faster convergence and better accuracy; "
            "without BN large steps make activations grow with depth and the loss diverge",
            "ResNet with 110 layers on CIFAR-10",
        ),
    ),
    holds="The largest rate that trains at all is {rate:x10} times as large with BN; that need "
    "not be so of the rate that is best. At the source's 0.5 the loss without BN minus that with "
    "BN is {at_source} nats.",
    practice="With batch normalization, include learning rates several times as large in your "
    "search; the largest that trains is rarely the best.",
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
    tables=(limits.grid_table, limits.limits_table),
    differs="The source used a single rate, 0.5. Whether the plain network trains there depends on "
    "its first weights and the order of its images; with ours it may well train at 0.5 and stop "
    "later. A rate counts as tolerated here where the loss is a tenth below guessing, however "
    "badly the network learns, and the grid is coarse and has an end.",
)
