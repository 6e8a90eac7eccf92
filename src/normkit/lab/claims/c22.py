"""C22: DenseNet reaches ResNet's accuracy with fewer parameters.

The source trains ResNet-18 (11.2 million parameters) and a small DenseNet (0.75 million: 4 blocks
of 4 layers, growth 32) on Fashion-MNIST. A CPU has not the time for them; quick and full cut the
widths of both to an eighth, so that the ratio of their parameters stays near the source's (14.8
there, 13.7 here).

Endpoints, fixed before any run of the claim's seeds; both must hold for *supported*:

* it reaches ResNet: DenseNet's test accuracy after the last epoch is less than one point below
  ResNet-18's, seed by seed: one point (0.01) and the difference are above zero together;
* with fewer parameters: the share of ResNet-18's that DenseNet does without (matters from a half).
  They are counted from the models of the runs, and are known before any run.

The accuracy that decides is that with population statistics of the final weights, for the claim is
about what networks of so many parameters learn; what the moving average adds to it, as noise and
mostly to DenseNet, is the subject of C24. That with the moving average, which the source prints,
is shown beside it.

A third arm decides nothing: ResNet-18, cut to about as many parameters as DenseNet has. Where it
is as good as the others, ResNet-18 had more than this task asks for, and fewer parameters are no
merit of DenseNet's.

Both are trained with the source's optimizer and its rates (SGD without momentum, 0.05 and 0.1), in
batches a quarter of its size and along a cosine, for the epochs are few.

Tried before, on seed 100, which is no seed of the claim: six single runs. At nearly the sizes of
the full preset the accuracies were .814 (ResNet-18), .805 (DenseNet) and .754 (cut). The other
three, at 16 pixels and 160 steps, had momentum, rate and decay of DenseNet's authors: .788, .757
and .764. Nothing was changed because of them; the source's own way stayed.

C24 trains a DenseNet too; it is another one (growth 8), for ten epochs in batches of 256 at a
constant rate, and a ResNet-18 to go with it would take longer than both networks here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset, Scale
from normkit.lab.claims.parts import BN, differences, figures, metric_chart, seed_table
from normkit.lab.claims.sizes import (
    CUT,
    DENSENET,
    RESNET,
    SOURCE,
    Options,
    counted,
    epoch_seconds,
    moving,
    networks_table,
    parameters,
    parameters_chart,
    population,
    times,
)
from normkit.lab.conditions import Condition
from normkit.lab.config import RunConfig
from normkit.lab.findings import Reference, Table
from normkit.lab.runs import Run
from normkit.lab.verdicts import paired_test

MARGIN = 0.01
SMALLEST_SHARE = 0.5
SAMPLES = 10_000

SCALES: dict[Preset, Scale] = {
    "quick": Scale(seeds=5, train=2_000, test=2_000, epochs=4),
    "full": Scale(seeds=5, train=4_000, test=2_000, epochs=4),
    "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=10),
}
SMALL: dict[str, tuple[str, Options]] = {
    RESNET: ("resnet18", (("width", 8),)),
    DENSENET: ("densenet", (("growth", 4), ("stem", 8))),
    CUT: ("resnet18", (("width", 2),)),
}
# At what rate the source trains each.
RATES = {RESNET: 0.05, DENSENET: 0.1, CUT: 0.05}


def plan(preset: Preset, available: Available) -> Arms:
    """Both networks, an eighth as wide; in paper the source's own, trained as there."""
    scale = SCALES[preset]
    images = available.at_most(scale.train, scale.test)
    population: Condition = ("population", min(SAMPLES, images["train_images"]), 256)
    common: dict[str, Any] = {
        "norm": BN,
        "epochs": scale.epochs,
        "final_evaluations": (population,),
        **images,
    }
    if preset == "paper":
        common |= {"size": 96, "batch_size": 256}
    else:
        size = 16 if preset == "quick" else 28
        common |= {"size": size, "batch_size": 64, "schedule": "cosine"}
    return [
        (
            arm,
            RunConfig(model=model, model_options=options, lr=RATES[arm], seed=seed, **common),
        )
        for seed in range(scale.seeds)
        for arm, (model, options) in (SOURCE if preset == "paper" else SMALL).items()
    ]


def judge(evidence: Evidence) -> Judgement:
    """Compare accuracy, seed by seed, and count parameters."""
    pairs = evidence.pairs(RESNET, DENSENET)
    gaps = _gaps(evidence, population)
    reaches = paired_test(
        "Reaches ResNet (decides): how far above one point below ResNet-18's is DenseNet's test "
        "accuracy?",
        [MARGIN + gap for gap in gaps],
        unit="accuracy",
    )
    fewer = paired_test(
        "Fewer parameters (decides): what share of ResNet-18's does DenseNet do without?",
        [1 - parameters(dense.config) / parameters(res.config) for res, dense in pairs],
        unit="share of parameters",
        smallest=SMALLEST_SHARE,
    )
    gap = paired_test(
        "For information: how much higher is DenseNet's test accuracy than ResNet-18's?",
        gaps,
        unit="accuracy",
        smallest=MARGIN,
    )
    remembered = paired_test(
        "For information: how much higher is it with the moving average?",
        _gaps(evidence, moving),
        unit="accuracy",
        smallest=MARGIN,
    )
    cut = paired_test(
        "For information: how much higher is it than that of ResNet-18 cut to DenseNet's size?",
        _gaps(evidence, population, CUT),
        unit="accuracy",
        smallest=MARGIN,
    )
    charts = [
        parameters_chart(evidence),
        metric_chart(
            evidence,
            "test_accuracy",
            key="epochs",
            title="Test accuracy by epoch, with the moving average",
            y_label="test accuracy",
        ),
    ]
    return Judgement(
        sentence=(
            f"DenseNet's test accuracy less ResNet-18's is {figures(gap, scale=100, digits=1)} "
            f"points ({evidence.coverage(len(gaps))}, 95 % interval) with "
            f"{counted(evidence, DENSENET)} parameters against {counted(evidence, RESNET)}, and "
            f"less that of a ResNet-18 cut to {counted(evidence, CUT)} it is "
            f"{figures(cut, scale=100, digits=1)}. "
            f"An epoch takes {times(evidence)} ResNet-18's time."
        ),
        decides=[reaches, fewer],
        information=[gap, remembered, cut],
        charts=[chart for chart in charts if chart],
        tables=(networks_table(evidence), _seed_table(evidence)),
    )


def _gaps(
    evidence: Evidence, accuracy: Callable[[Run], float | None], other: str = RESNET
) -> list[float]:
    """DenseNet's accuracy less the other's, seed by seed."""
    return differences(evidence.pairs(DENSENET, other), accuracy)


def _seed_table(evidence: Evidence) -> Table:
    return seed_table(
        evidence,
        (
            ("population statistics", population),
            ("moving average", moving),
            ("training accuracy", lambda run: run.last("epoch_train_accuracy")),
            ("seconds per epoch", epoch_seconds),
        ),
    )


CLAIM = Claim(
    key="C22",
    title="DenseNet reaches ResNet's accuracy with fewer parameters",
    statement=(
        "A DenseNet, whose layers see all layers before them and add few channels each, is as "
        "accurate as a ResNet that has many times its parameters."
    ),
    sources=(
        Reference(
            "Dive into Deep Learning (d2l), Fashion-MNIST at 96×96 pixels, about 80 published "
            "builds",
            "test accuracy after 10 epochs, least, median and greatest: ResNet-18 (11.2 M "
            "parameters) .814, .913, .927; DenseNet (0.75 M) .406, .882, .918",
            "https://d2l.ai/chapter_convolutional-modern/densenet.html",
        ),
        Reference(
            "Huang et al. 2016, Densely Connected Convolutional Networks, ImageNet",
            "DenseNet-201 with 20 M parameters has about the validation error of ResNet-101 with "
            "more than 40 M",
            "https://arxiv.org/abs/1608.06993",
        ),
        Reference(
            "Notes on batch normalization, ResNet and DenseNet with Gluon and d2l (article)",
            "the claim as stated; both networks on Fashion-MNIST, as in the book",
        ),
    ),
    prediction=(
        "DenseNet's test accuracy is less than a point below ResNet-18's, with a fourteenth of its "
        "parameters."
    ),
    decision=(
        "Both: 0.01 plus DenseNet's test accuracy after the last epoch less ResNet-18's, with "
        "population statistics, is above zero; and the share of ResNet-18's parameters that it "
        "does without (matters from 0.5), counted from the models; 95 % t intervals of the paired "
        "differences."
    ),
    plan=plan,
    judge=judge,
    setup=(
        (
            "smaller than the source",
            "quick and full: an eighth of the source's widths, and 16 or 28 pixels where it has "
            "96; paper: the source's own",
        ),
    ),
    demo=False,
    differs=(
        "In quick and full the networks are an eighth as wide as the source's and trained for a "
        "small part of its steps, where the one that learns faster wins. In the source's own "
        "builds the median of DenseNet is three points below that of ResNet-18, with the moving "
        "average."
    ),
)
