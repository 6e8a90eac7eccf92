"""C21: plain deep networks get worse with depth, residual ones do not.

He et al. saw *degradation*: of two plain networks the deeper one has the higher training error, so
it is not overfitting; and all of them have batch normalization, so it is not vanishing signals.
The error that decides is that on the training batches of the last epoch, as in the paper's figures.

Pilot runs (seed 100, not used for the verdict): 11. Of the paper's narrow networks for CIFAR, the
plain one of 56 layers learned nothing in 240 steps; hence 18 and 34 layers, and half the rate. The
first edition's 470 steps measured slow learning; after 25 epochs (1,150 steps) two trials gave
training errors at 18 and 34 layers of 1.1 and 22.0, 4.4 and 23.9 % (plain), 0.07 and 0.27, 0.14 and
0.58 % (residual).
"""

from __future__ import annotations

from normkit.lab.claims.measures.depths import (
    ERROR,
    LAYERS,
    PLAIN,
    PUBLISHED,
    RESIDUAL,
    TEST_ERROR,
    by_epoch,
    depths_table,
    layers,
    rise,
)
from normkit.lab.claims.sources import D2L, HE, RESNET_NOTES, figures
from normkit.lab.claims.study import (
    PERCENT,
    Curves,
    Endpoint,
    Plan,
    Scale,
    Seeds,
    by_setting,
    define,
    learned,
)

TWO, FOUR = ([{"model": f"resnet{n}"} for n in depths] for depths in ((18, 34), (20, 32, 44, 56)))
SMALL = {"size": 16, "batch_size": 64, "lr": 0.05, "schedule": "cosine"}
PAPER = {"batch_size": 128, "lr": 0.1, "schedule": "step", "size": lambda at: at.data.side}
ERRORS = [
    f"{data}, {arm}, {figures(errors)} layers: {figures(errors.values())}"
    for (data, arm), errors in PUBLISHED.items()
]


def shortcuts(residual: bool) -> dict[str, object]:
    """An arm: with or without shortcuts, and narrow except in the paper's own networks."""
    narrow = (("residual", residual), ("width", 8))
    return {"model_options": lambda at: narrow[:1] if at.preset == "paper" else narrow}


CLAIM = define(
    key="C21",
    title="Plain deep networks get worse with depth, residual ones do not",
    topic="architecture",
    statement="Adding layers to a plain network raises even its training error. With shortcuts "
    "around every two layers the deeper network is at least as good as the shallower one.",
    sources=(
        HE.says(
            f"error, %: {'; '.join(ERRORS[:3])}; plain networks' error rises on CIFAR-10, too, and "
            "that of 34 layers has the higher training error throughout",
        ),
        RESNET_NOTES.says("the claim as stated, with ResNet-18 on Fashion-MNIST; no plain network"),
        D2L.says(
            "test accuracy, %, of ResNet-18 after 10 epochs, least, median and greatest of about "
            "80 published builds: 81.4 91.3 92.7; no plain network",
            "Fashion-MNIST at 96×96 pixels",
            f"{D2L.url}resnet.html",
        ),
    ),
    prediction="From the shallowest to the deepest network the training error of the plain one "
    "rises by a point or more, that of the residual one falls or stays.",
    plan=Plan(
        scales={
            "quick": Scale(seeds=3, train=2_000, test=1_000, epochs=5),
            "full": Scale(seeds=5, train=3_000, test=5_000, epochs=25),
            "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=164),
        },
        arms={PLAIN: shortcuts(False), RESIDUAL: shortcuts(True)},
        base={"norm": "batch", "momentum": 0.9, "weight_decay": 1e-4},
        presets={"quick": SMALL, "full": SMALL | {"evaluate_every": 5}, "paper": PAPER},
        settings={"quick": TWO, "full": TWO, "paper": FOUR},
    ),
    decides={
        "plain": Endpoint(
            "Plain gets worse: how much higher is its training error at the greatest depth?",
            rise(PLAIN),
            matters=1,
        ),
        "less": Endpoint(
            "Shortcuts help: how much less does the residual network's error rise?",
            rise(PLAIN) - rise(RESIDUAL),
            matters=1,
            provided=learned(RESIDUAL),
        ),
        "residual": Endpoint(
            "Residual does not get worse: how much lower is its training error there?",
            -rise(RESIDUAL),
            margin=1,
            provided=learned(RESIDUAL),
        ),
    },
    information={
        "test": Endpoint(
            "How much less does the residual network's test error rise?",
            rise(PLAIN, TEST_ERROR) - rise(RESIDUAL, TEST_ERROR),
            matters=1,
        ),
    },
    sentence="From the shallowest to the deepest network, the plain network's training error rises "
    "by {plain} points and the residual one's falls by {residual} (negative: it rises)",
    source_setup={
        "network": "plain and residual networks of 18 to 152 layers",
        "data": "ImageNet; CIFAR-10",
        "steps": "600,000 steps of 256 images; 64,000 of 128",
        "figures": "validation error on ImageNet, from 18 to 34 layers: plain 27.94 to 28.54 %, "
        "residual 27.88 to 25.03",
    },
    figures="rise of training error with depth: plain {plain} points; plain minus residual {less}",
    at_scale=(
        HE.agrees(
            "from 18 to 34 layers the plain network's error rises from 27.94 to 28.54 %, with the "
            "higher training error throughout, and the residual one's falls to 25.03; with 152 "
            "layers it is 21.43",
            "ImageNet, top-1, 10-crop",
        ),
        HE.larger(
            "1,202 layers train as well as 110 and test worse, 7.93 against 6.43 %, which is "
            "overfitting and not degradation",
            "CIFAR-10, §4.2",
        ),
    ),
    holds="With batch normalization after every convolution and at the end of a schedule, the "
    "plain network's training error rises with depth by {plain} points and the residual one's by "
    "{less} less than that; the residual one's falls by {residual} (negative: it rises), and its "
    "test error rises by {test} less than the plain one's. Of a short training this would say "
    "little: there, deeper networks may only be slower.",
    practice="Use shortcuts in a network of some thirty layers or more. Judge depth by the "
    "training error after a whole schedule.",
    charts=(
        by_setting(layers, ERROR, "Training error by depth", "layers", "training error"),
        Curves(
            "epochs",
            "Training error by epoch, shallow and deep",
            "epoch",
            "training error",
            PERCENT,
            series=by_epoch,
        ),
    ),
    tables=(depths_table, Seeds((LAYERS, ERROR, TEST_ERROR))),
    also=("cifar-10",),
    setup=(
        ("quick and full", "8 channels in the first stage where the source has 64"),
        ("paper", "the source's networks for CIFAR; 1×1 convolutions where sizes change"),
    ),
    demo=False,
    differs="The source trains for tens to hundreds of thousands of steps, and full for about a "
    "thousand, where a network that only learns more slowly for being deep counts as worse: the "
    "source's plain network loses 0.6 points from 18 to 34 layers. Where a network knows nearly "
    "all its training images, a rise of less than a point may be several times its error.",
)
