"""C21: plain deep networks get worse with depth, residual ones do not.

He et al. saw *degradation*: of two plain networks the deeper one has the higher training error, so
it is not overfitting; and batch normalization is in all of them, so it is not signals that die out.
With shortcuts it is gone. Here the paper's networks of 18 and 34 layers, with and without
shortcuts, all with batch normalization, are trained alike: same images in the same order, same
rate.

Endpoints, fixed before any run of the claim's seeds. The error is that on the training batches of
the last epoch, as they were learned from (as in the paper's figures); a run whose loss was not
finite counts as guessing. From the shallowest to the deepest network, seed by seed, and all must
hold for *supported*:

* the plain network gets worse: its training error rises (matters from one point, 0.01);
* shortcuts help: that rise less the residual network's (matters from one point);
* the residual network does not get worse: one point less its rise is above zero, which says that
  it rises by less than a point.

Tried before, on seed 100, which is no seed of the claim: 11 single runs, and one cut off. Of the
paper's narrow networks for CIFAR, 20 and 56 layers, the plain deep one learned nothing in the 240
steps that could be afforded, and the residual one was still far behind; hence 18 and 34 layers,
half the rate, a cosine, and batches half as large. At the sizes of the full preset the training
errors were 8.8 and 27.8 % plain, 5.5 and 5.6 % residual. The parts that decide and the smallest
effects were fixed before, and stayed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset, Scale
from normkit.lab.claims.depths import (
    PLAIN,
    RESIDUAL,
    depth_of,
    depths,
    depths_chart,
    depths_table,
    epochs_chart,
    test_error,
    training_error,
)
from normkit.lab.claims.parts import BN, differences, figures, learned, seed_table
from normkit.lab.config import RunConfig
from normkit.lab.findings import Comparison, Reference, Table
from normkit.lab.runs import Run
from normkit.lab.verdicts import paired_test

SMALLEST = 0.01

SCALES: dict[Preset, Scale] = {
    "quick": Scale(seeds=3, train=2_000, test=1_000, epochs=5),
    "full": Scale(seeds=5, train=3_000, test=1_000, epochs=10),
    "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=164),
}
DEPTHS: dict[Preset, tuple[int, ...]] = {
    "quick": (18, 34),
    "full": (18, 34),
    "paper": (20, 32, 44, 56),
}


def plan(preset: Preset, available: Available) -> Arms:
    """ResNet-18 and -34 of width 8 at 16 pixels; the paper's narrow family for CIFAR in paper."""
    scale = SCALES[preset]
    common: dict[str, Any] = {
        "norm": BN,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "epochs": scale.epochs,
        **available.at_most(scale.train, scale.test),
    }
    width: tuple[tuple[str, int], ...] = ()
    if preset == "paper":
        common |= {"size": available.side, "batch_size": 128, "lr": 0.1, "schedule": "step"}
    else:
        common |= {"size": 16, "batch_size": 64, "lr": 0.05, "schedule": "cosine"}
        width = (("width", 8),)
    return [
        (
            arm,
            RunConfig(
                model=f"resnet{depth}",
                model_options=(("residual", arm == RESIDUAL), *width),
                seed=seed,
                **common,
            ),
        )
        for seed in range(scale.seeds)
        for depth in DEPTHS[preset]
        for arm in (PLAIN, RESIDUAL)
    ]


Error = Callable[[Run], float | None]


def rises(evidence: Evidence, arm: str, error: Error = training_error) -> dict[int, float]:
    """By seed: an arm's error at the greatest depth less that at the smallest."""
    found = depths(evidence) or [0]
    shallow, deep = (
        {run.config.seed: run for run in evidence.of(arm, model=f"resnet{layers}")}
        for layers in (found[0], found[-1])
    )
    return {
        seed: rise
        for seed in deep.keys() & shallow.keys()
        for rise in differences([(deep[seed], shallow[seed])], error)
    }


def judge(evidence: Evidence) -> Judgement:
    """Compare how far the errors rise with depth, seed by seed."""
    by_arm = {arm: rises(evidence, arm) for arm in (PLAIN, RESIDUAL)}
    both = sorted(by_arm[PLAIN].keys() & by_arm[RESIDUAL].keys())
    ends = " to ".join(map(str, depths(evidence)[:: max(1, len(depths(evidence)) - 1)]))
    worse = _compare(
        "Plain gets worse (decides): how far does its training error rise with depth?",
        [by_arm[PLAIN][seed] for seed in both],
    )
    less = _compare(
        "Shortcuts help (decides): how much less does the residual network's rise?",
        [by_arm[PLAIN][seed] - by_arm[RESIDUAL][seed] for seed in both],
    )
    kept = paired_test(
        "Residual does not get worse (decides): how far below one point is the rise of its "
        "training error?",
        [SMALLEST - by_arm[RESIDUAL][seed] for seed in both],
        unit="error",
    )
    of_test = {arm: rises(evidence, arm, test_error) for arm in (PLAIN, RESIDUAL)}
    tested = _compare(
        "For information: how much less does the residual network's test error rise?",
        [
            rise - of_test[RESIDUAL][s]
            for s, rise in of_test[PLAIN].items()
            if s in of_test[RESIDUAL]
        ],
    )
    residual = _compare("", [by_arm[RESIDUAL][seed] for seed in both])
    charts = [depths_chart(evidence, worse, residual), epochs_chart(evidence)]
    return Judgement(
        sentence=(
            f"From {ends} layers the training error of the plain network rises by "
            f"{figures(worse, scale=100, digits=1)} points, that of the residual network by "
            f"{figures(residual, scale=100, digits=1)} "
            f"({evidence.coverage(len(both))}, 95 % intervals)."
        ),
        decides=[
            worse,
            *(each if learned(evidence.of(RESIDUAL)) else None for each in (less, kept)),
        ],
        information=[tested],
        charts=[chart for chart in charts if chart],
        tables=(depths_table(evidence), _seed_table(evidence)),
    )


def _compare(question: str, values: list[float]) -> Comparison | None:
    return paired_test(question, values, unit="error", smallest=SMALLEST)


def _seed_table(evidence: Evidence) -> Table:
    return seed_table(
        evidence,
        (
            ("layers", lambda run: depth_of(run.config)),
            ("training error", training_error),
            ("test error", test_error),
        ),
    )


CLAIM = Claim(
    key="C21",
    title="Plain deep networks get worse with depth, residual ones do not",
    statement=(
        "Adding layers to a plain network raises even its training error. With shortcuts around "
        "every two layers the deeper network is at least as good as the shallower one."
    ),
    sources=(
        Reference(
            "He et al. 2015, Deep Residual Learning for Image Recognition, ImageNet",
            "validation error, %, at 18 and 34 layers: plain 27.94, 28.54; residual 27.88, 25.03; "
            "the plain network of 34 layers has the higher training error throughout. On CIFAR-10, "
            "test error at 20, 32, 44, 56: residual 8.75, 7.51, 7.17, 6.97; plain rises",
            "https://arxiv.org/abs/1512.03385",
        ),
        Reference(
            "Notes on batch normalization, ResNet and DenseNet with Gluon and d2l (article)",
            "the claim as stated, with ResNet-18 on Fashion-MNIST; no plain network of its depth",
        ),
        Reference(
            "Dive into Deep Learning (d2l), Fashion-MNIST at 96×96 pixels, about 80 published "
            "builds",
            "test accuracy of ResNet-18 after 10 epochs, least, median and greatest: .814, .913, "
            ".927; no plain network",
            "https://d2l.ai/chapter_convolutional-modern/resnet.html",
        ),
    ),
    prediction=(
        "From the shallowest to the deepest network the training error of the plain one rises by a "
        "point or more, that of the residual one falls or stays."
    ),
    decision=(
        "All, of the training error of the last epoch, greatest depth less smallest: the plain "
        "network's rise (matters from 0.01), that rise less the residual network's (from 0.01), "
        "and 0.01 less the residual network's rise above zero; 95 % t intervals of the paired "
        "differences."
    ),
    plan=plan,
    judge=judge,
    also=("cifar-10",),
    setup=(
        (
            "smaller than the source",
            "quick and full: a first stage of 8 channels where the source has 64, and images of 16 "
            "pixels; paper: the source's narrow networks for CIFAR, of 20 to 56 layers, with 1×1 "
            "convolutions on the shortcuts that change size",
        ),
    ),
    demo=False,
    differs=(
        "The source trains to the end, for tens to hundreds of thousands of steps. Where training "
        "is short, as in quick and full, a residual network that only learns more slowly for "
        "being deep counts as worse. And 18 and 34 narrow layers on an easy task may be too few "
        "for a plain network to get worse: the source sees most of that at 56."
    ),
)
