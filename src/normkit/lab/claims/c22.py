"""C22: DenseNet reaches ResNet's accuracy with fewer parameters.

The source trains ResNet-18 (11.2 million parameters) and a small DenseNet (0.75 million: 4 blocks
of 4 layers, growth 32) on Fashion-MNIST. Quick and full cut the widths of both to an eighth, which
keeps the ratio of their parameters (14.8 there, 13.7 here); optimizer and rates are the source's.
ResNet-18 cut to about DenseNet's number of parameters tells whether it is DenseNet's doing: at
equal size the more accurate one uses its parameters better. One more size of each makes a curve of
accuracy over parameters. How many fewer DenseNet has is known without a training. Population
statistics decide, because the claim is about what networks learn; what the moving average costs,
mostly DenseNet, is C24's subject.

Pilot runs (seed 100, not used for the verdict): six. At nearly full's sizes the accuracies were
81.4 % (ResNet-18), 80.5 % (DenseNet) and 75.4 % (cut). A trial for the second edition, of three
seeds, gave DenseNet 8.6 [3.7, 13.4] points more at equal size.
"""

from __future__ import annotations

from normkit.lab.claims.measures.sizes import (
    CUT,
    DENSENET,
    HALF,
    MOVING,
    POPULATION,
    PUBLISHED,
    RESNET,
    SECONDS,
    SOURCE,
    WIDE,
    WIDTHS,
    by_parameters,
    counted,
    networks_table,
    times,
)
from normkit.lab.claims.sources import D2L, HUANG, RESNET_NOTES, figures
from normkit.lab.claims.study import (
    Endpoint,
    Measure,
    Plan,
    Quantity,
    Scale,
    Seeds,
    along,
    define,
    last,
    population,
)


def less(measure: Measure, arm: str) -> Quantity:
    """Declare by how much DenseNet's accuracy exceeds another network's."""
    return measure.at(DENSENET) - measure.at(arm)


CLAIM = define(
    key="C22",
    title="DenseNet reaches ResNet's accuracy with fewer parameters",
    topic="architecture",
    statement="A DenseNet, in which each layer sees the outputs of all layers before it and adds "
    "few channels, is as accurate as a ResNet that has many times its parameters.",
    sources=(
        D2L.says(
            "test accuracy, %, after 10 epochs, least, median and greatest of about 80 published "
            "builds: "
            + "; ".join(
                f"{network} ({SOURCE[network]:,} parameters) {figures(values)}"
                for network, values in PUBLISHED.items()
            ),
            "Fashion-MNIST at 96×96 pixels",
            f"{D2L.url}densenet.html",
        ),
        HUANG.says(
            "DenseNet-201 with 20 M parameters has about the validation error of ResNet-101 with "
            "more than 40 M",
            "ImageNet",
        ),
        RESNET_NOTES.says("the claim as stated; both networks on Fashion-MNIST, as in the book"),
    ),
    prediction="DenseNet's test accuracy is less than a point below ResNet-18's, with a fourteenth "
    "of its parameters. (The first edition, trained more briefly, saw 5.9 points.)",
    plan=Plan(
        scales={
            "quick": Scale(seeds=5, train=2_000, test=2_000, epochs=4),
            "full": Scale(seeds=5, train=4_000, test=5_000, epochs=6),
            "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=10),
        },
        arms={
            RESNET: {"model": "resnet18", "model_options": WIDTHS[RESNET], "lr": 0.05},
            DENSENET: {"model": "densenet", "model_options": WIDTHS[DENSENET], "lr": 0.1},
            CUT: {"model": "resnet18", "model_options": WIDTHS[CUT], "lr": 0.05},
            HALF: {"model": "resnet18", "model_options": WIDTHS[HALF], "lr": 0.05},
            WIDE: {"model": "densenet", "model_options": WIDTHS[WIDE], "lr": 0.1},
        },
        seeds={arm: {"quick": 0, "paper": 0} for arm in (HALF, WIDE)},
        base={"norm": "batch", "final_evaluations": population(10_000, 256)},
        presets={
            "quick": {"size": 16, "batch_size": 64, "schedule": "cosine"},
            "full": {"size": 28, "batch_size": 64, "schedule": "cosine", "evaluate_every": 3},
            "paper": {"size": 96, "batch_size": 256},
        },
    ),
    decides={
        "gap": Endpoint(
            "Reaches ResNet: how much higher is DenseNet's test accuracy than ResNet-18's?",
            less(POPULATION, RESNET),
            margin=1,
        ),
        "equal": Endpoint(
            "Fewer parameters: at equal size, how much higher is DenseNet's test accuracy?",
            less(POPULATION, CUT),
            matters=1,
        ),
    },
    information={
        "fewer": Endpoint(
            "Twice as wide, with a fourth of ResNet-18's parameters: how much higher is "
            "DenseNet's test accuracy than ResNet-18's?",
            POPULATION.at(WIDE) - POPULATION.at(RESNET),
            margin=1,
        ),
        "wider": Endpoint(
            "At four times that size, how much higher is DenseNet's test accuracy than "
            "ResNet-18's?",
            POPULATION.at(WIDE) - POPULATION.at(HALF),
            matters=1,
        ),
        "moving": Endpoint(
            "How much higher is it with the moving average?", less(MOVING, RESNET), matters=1
        ),
    },
    sentence="Test accuracy of DenseNet, with {dense} parameters, minus that of ResNet-18, with "
    "{res}, is {gap} points; minus that of ResNet-18 cut to {less} it is {equal}. An epoch of "
    "DenseNet takes {times} ResNet-18's time",
    say={"dense": counted(DENSENET), "res": counted(RESNET), "less": counted(CUT), "times": times},
    source_setup={
        "network": "ResNet-18, 11.2 M parameters; DenseNet, 0.76 M",
        "data": "Fashion-MNIST at 96×96 pixels, 60,000 training images",
        "steps": "10 epochs of batches of 256",
        "figures": "test accuracy, median of about 80 builds: ResNet-18 91.3 %, DenseNet 88.2",
    },
    figures="DenseNet minus ResNet-18: {gap} points; at equal size {equal}",
    at_scale=(
        HUANG.agrees(
            "DenseNet-201 with 20 M parameters has about the validation error of ResNet-101 with "
            "more than 40 M",
            "ImageNet",
        ),
        D2L.contradicts(
            "as to this network and book: the median of the builds is 88.2 % for DenseNet and 91.3 "
            "for ResNet-18, with the moving average (C24)",
            "Fashion-MNIST at 96×96 pixels",
            f"{D2L.url}densenet.html",
        ),
    ),
    holds="With a fourteenth of the parameters, DenseNet's test accuracy minus ResNet-18's is "
    "{gap} points. At DenseNet's size it is {equal}, and at four times that size, the fairer "
    "pair, {wider}. DenseNet of twice the width minus ResNet-18 is {fewer}. An epoch of DenseNet "
    "takes {times} the time of the larger ResNet-18's.",
    practice="Consider DenseNet where the number of parameters is limited. Compare time "
    "as well: per parameter, DenseNet takes much more of it.",
    charts=(
        by_parameters,
        along(MOVING, "Test accuracy by epoch, moving average", "test accuracy", key="epochs"),
    ),
    tables=(
        networks_table,
        Seeds((POPULATION, MOVING, last("epoch_train_accuracy", "training accuracy"), SECONDS)),
    ),
    setup=(
        ("smaller than the source", "quick and full: an eighth of its widths, and 16 or 28 pixels"),
    ),
    demo=False,
    differs="In quick and full the networks are an eighth as wide as the source's and trained for "
    "a small part of its steps, where the one that learns faster wins. Each network has the "
    "source's learning rate for it, 0.05 and 0.1, also where the widths are others. In the "
    "source's own builds the median of DenseNet is three points below that of ResNet-18, with the "
    "moving average. ResNet-18 cut to DenseNet's size has two channels in its first stage; the "
    "pair of four times that size is the fairer one.",
)
