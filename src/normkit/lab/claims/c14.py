"""C14: batch normalization costs more than convolution, and too much on a CPU.

Measured, not trained: each run takes the time of one training step, forward and backward, spent in
normalization, in convolution and in the rest, with PyTorch's layers and with normkit's, in turn on
one batch. Its seed counts the repetitions. normkit's layers do the same and apply the activation
and the sum with the shortcut on the way. Too much is what would go if normalization took no time, a
tenth of a step or more; what normkit's layers save of it is shown beside it.

The endpoints were written after a first look at the benchmark's training steps of ResNet-18 and
DenseNet, where convolution took the larger part, and before normkit had kernels of its own.
"""

from __future__ import annotations

from normkit.lab.claims.claim import Preset
from normkit.lab.claims.measures.timing import (
    MORE,
    SAVED,
    SHARE,
    by_repetition,
    parts_chart,
    repetitions_table,
    times_table,
)
from normkit.lab.claims.sources import GITMAN, JUNG, NOTES
from normkit.lab.claims.study import BN, At, Endpoint, Plan, Scale, define

BATCHES: dict[Preset, int] = {"quick": 16, "full": 16, "paper": 128}
NETWORKS = {"lenet5": "LeNet-5", "resnet18": "ResNet-18", "densenet": "DenseNet"}


def batch(at: At) -> int:
    """The batch size of the two large networks."""
    return BATCHES[at.preset]


def fields(model: str) -> dict[str, object]:
    """A network with its images; a run holds one batch of them."""
    if model == "lenet5":
        return {"model": model, "size": 28, "batch_size": 256, "train_images": 256}
    return {"model": model, "size": 96, "batch_size": batch, "train_images": batch}


CLAIM = define(
    key="C14",
    title="Batch normalization costs more than it looks",
    topic="cost",
    statement="Batch normalization does few operations and takes much time all the same: more than "
    "the convolutions, and on a CPU more than it has to.",
    sources=(
        NOTES.says(
            "says that it costs more than convolution, and too much on a CPU; no times are given"
        ),
        GITMAN.says(
            "batch normalization takes a significant part of the time of training, and is bound by "
            "the memory's bandwidth"
        ),
    ),
    prediction="Convolution takes the larger share of a step, and normalization more than a tenth "
    "of it.",
    plan=Plan(
        scales={
            "quick": Scale(seeds=5, train=256, test=1, epochs=1),
            "full": Scale(seeds=6, train=256, test=1, epochs=1),
            "paper": Scale(seeds=20, train=256, test=1, epochs=1),
        },
        arms={model: fields(model) for model in NETWORKS},
        base={"kind": "timing", "norm": BN, "lr": 0.01, "momentum": 0.9},
    ),
    decides={
        "more": Endpoint(
            "More than convolution: how much more of a step does batch normalization take, mean of "
            "the networks?",
            by_repetition(MORE),
            matters=1,
        ),
        "share": Endpoint(
            "Too much on a CPU: what share of a step would go if it took no time, mean of the "
            "networks?",
            by_repetition(SHARE),
            matters=10,
            unit="% of a step",
        ),
    },
    information={
        "saved": Endpoint(
            "How much of a step goes away with normkit's layers, mean of the networks?",
            by_repetition(SAVED),
            matters=5,
            unit="% of a step",
        ),
        **{
            model: Endpoint(
                f"{name}: how much more of a step does batch normalization take than convolution?",
                MORE.at(model),
                matters=1,
            )
            for model, name in NETWORKS.items()
        },
    },
    rule="95 % t intervals over the repetitions",
    sentence="With PyTorch's layers, the share of a training step in batch normalization minus "
    "that in convolution is {more} points. Its share is {share:level} %; "
    "normkit's layers take {saved} % off it (negative: they add to it)",
    source_setup={
        "network": "not named",
        "data": "not named",
        "steps": "not named",
        "figures": "none: no times",
    },
    figures="share of a step in BN minus that in convolution: {more} points; share in BN "
    "{share:level} %",
    at_scale=(
        GITMAN.agrees(
            "as to the time: batch normalization takes a significant part of training, bound by "
            "the memory's bandwidth",
            "ResNet-50 on ImageNet",
        ),
        JUNG.agrees(
            "as to too much on a CPU: splitting batch normalization and fusing its halves with the "
            "layers around them makes the training of DenseNet-121 25.7 % faster",
            "a chip with many cores",
        ),
    ),
    holds="It depends on the network. On one thread of this CPU, the share of normalization minus "
    "that of convolution is {lenet5} points in LeNet-5, {resnet18} in ResNet-18 and {densenet} in "
    "DenseNet; on average normalization takes {share:level} % of a step.",
    practice="On a CPU, fuse normalization with the activation that follows (nk.accelerate), and "
    "time a step of your own network before and after.",
    charts=[parts_chart(model) for model in NETWORKS],
    tables=(times_table, repetitions_table),
    setup=(
        ("threads", "1, beside the lab's other workers"),
        ("memory", "what is freed is kept by the process"),
        ("clock", "hooks before and after each module and each node of the autograd graph"),
        ("a run", "median of 5 steps of each side, in turn, after 2 of each"),
        ("memory format", "contiguous"),
    ),
    differs="The source tells neither its CPU nor which kernels it timed. It dates from the years "
    "of Caffe, whose BN and Scale layers went over their data several times; PyTorch's kernels do "
    "less of that, and their convolutions have become faster too. The shares depend on the "
    "processor, the memory and the number of threads, and on the networks: where convolutions are "
    "small, normalization may take a larger share.",
)
