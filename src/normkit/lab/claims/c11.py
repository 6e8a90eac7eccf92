"""C11: an eps of 1e-10 is better than 1e-5, and γ, β are better started beside 1 and 0.

Caffe's quick network, trained as in C10. What an ε is compared with is the variance of a layer's
outputs. Caffe's first weights have a deviation of 1e-4, made for pixels from 0 to 255; ours are
standardized, and the first layer's outputs then start with variances of 5e-8 to 1.3e-6 by channel,
far below 1e-5 (with pixels 90 times as large they are 4e-4 to 1e-2, far above). So the default has
every chance to be too large. In float32, 1.0000001 is 1 + 2⁻²³, one rounding unit above 1.

The endpoints are read with batch statistics, because the question is what was learned: the moving
average adds noise of its own (C24).

Pilot runs (seed 100, not used for the verdict): those variances, and one run of each of the three
deciding arms for its cost. The full preset was enlarged after quick's 2,000 test images had proved
too few to detect half a point; nothing else was changed. The second edition says when: PyTorch's
first weights, under which no layer's variance is of ε's size, stand beside Caffe's (of two pilots a
gain of 0.8 and 0.0 points).
"""

from __future__ import annotations

from typing import Any

from normkit.lab.claims.c10 import BATCH, CAFFE_NETWORK, OF_BATCH, RUNNING
from normkit.lab.claims.claim import Preset
from normkit.lab.claims.sources import BAYES_NOTES, CAFFE_QUICK, TORCHVISION
from normkit.lab.claims.study import (
    TRAIN_LOSS,
    ByArm,
    Dots,
    Endpoint,
    Measure,
    Plan,
    Quantity,
    Scale,
    Seeds,
    define,
)

DEFAULT, SMALL, STARTED = "default: ε 1e-5, γ 1, β 0", "ε 1e-10", "γ 1.0000001, β 1e-7"
LARGE = "ε 1e-3"
USUAL, USUAL_SMALL = "default, PyTorch's first weights", "ε 1e-10, PyTorch's first weights"
CHANGES = {SMALL: DEFAULT, STARTED: DEFAULT, LARGE: DEFAULT, USUAL_SMALL: USUAL}
PYTORCH = {"model_options": (("init", "pytorch"),)}
FEWER: dict[Preset, int] = {"quick": 0, "full": 4, "paper": 10}


def norm(**options: float) -> dict[str, Any]:
    """The options of the normalizer: an average with decay 0.95, and these."""
    return {"norm_options": (("momentum", 0.05), *options.items())}


def gain(change: str, measure: Measure = BATCH) -> Quantity:
    """Compare a change with the default of the same first weights."""
    return measure.at(change) - measure.at(CHANGES[change])


def endpoint(question: str, change: str, measure: Measure = BATCH) -> Endpoint:
    """Ask whether a change gains half a point."""
    return Endpoint(question, gain(change, measure), matters=0.5)


CLAIM = define(
    key="C11",
    title="An ε of 1e-10 is better than 1e-5, and γ, β are better started beside 1 and 0",
    topic="statistics",
    statement="On CIFAR-10 an ε of 1e-5 is already too large, and 1e-10 is better; γ and β started "
    "at 1.0000001 and 1e-7 are better than at 1 and 0.",
    sources=(
        BAYES_NOTES.says(
            "both as stated; no figures, and no number of runs", "CIFAR-10 quick in Caffe"
        ),
        CAFFE_QUICK,
    ),
    prediction="Neither gains half a point: starts one rounding unit apart differ as two runs do "
    "whose sums are rounded differently, and ε matters to the first layer alone, while its weights "
    "are as small as Caffe starts them. (The first edition saw 0.8 points for ε.)",
    plan=Plan(
        scales={
            "quick": Scale(seeds=5, train=2_000, test=2_000, epochs=2),
            "full": Scale(seeds=10, train=5_000, test=3_000, epochs=3),
            "paper": Scale(seeds=10, train=60_000, test=10_000, epochs=60),
        },
        arms={
            DEFAULT: norm(),
            SMALL: norm(eps=1e-10),
            STARTED: norm(gamma=1.0000001, beta=1e-7),
            LARGE: norm(eps=1e-3),
            USUAL: norm() | PYTORCH,
            USUAL_SMALL: norm(eps=1e-10) | PYTORCH,
        },
        base=CAFFE_NETWORK | {"final_evaluations": (OF_BATCH,)},
        seeds=dict.fromkeys((LARGE, USUAL, USUAL_SMALL), FEWER),
    ),
    decides={
        "eps": endpoint(
            "ε: how much higher is test accuracy after the last epoch with 1e-10 than with 1e-5?",
            SMALL,
        ),
        "start": endpoint("γ, β: how much higher is it, started at 1.0000001 and 1e-7?", STARTED),
    },
    information={
        "eps_running": endpoint("ε, running statistics: how much higher?", SMALL, RUNNING),
        "start_running": endpoint("γ, β, running statistics: how much higher?", STARTED, RUNNING),
        "larger": endpoint("How much higher with an ε of 1e-3?", LARGE),
        "other": endpoint("How much higher with 1e-10, from PyTorch's first weights?", USUAL_SMALL),
    },
    source_setup={
        "network": "CIFAR-10 quick, in Caffe",
        "data": "CIFAR-10, 50,000 training images",
        "steps": "not given",
        "figures": "none given",
    },
    figures="change of test accuracy: ε 1e-10 {eps} points, start of γ and β {start} points",
    at_scale=(
        TORCHVISION.contradicts(
            "as to ε, by usage and without a comparison: MobileNet V3, made for ImageNet, has "
            "1e-3, a hundred times the default",
            "MobileNet V3",
            "https://pytorch.org/vision/stable/models/mobilenetv3.html",
        ),
    ),
    holds="ε can matter only where the variance of a layer's outputs is of its size. With Caffe's "
    "first weights, which make it 5e-8 to 1.3e-6 in the first layer, an ε of 1e-10 changes test "
    "accuracy by {eps} points, and one of 1e-3 by {larger}; with PyTorch's, 1e-10 by {other}. "
    "Starting γ and β one rounding unit away changes it by {start}.",
    practice="Leave ε, γ and β at their defaults. Where a layer's variance is near ε or below, "
    "use larger first weights or inputs rather than a smaller ε.",
    sentence="An ε of 1e-10 changes test accuracy by {eps} points, and γ, β started beside 1 and 0 "
    "by {start} points",
    charts=(
        Dots(
            "gains",
            "What each change gains over the default: half a point would matter",
            "change",
            "test accuracy gained",
            {each.name: {arm: gain(arm, each) for arm in CHANGES} for each in (BATCH, RUNNING)},
            difference=True,
        ),
    ),
    tables=(
        ByArm(
            (BATCH, RUNNING),
            "Test accuracy after the last epoch, mean over the seeds (the source gives no figures)",
            [("published: ε 1e-10 and these starts are better", None, None)],
        ),
        Seeds((BATCH, RUNNING, TRAIN_LOSS)),
    ),
    also=("cifar-10",),
    setup=(
        ("first weights", "Caffe's, except where an arm says PyTorch's"),
        ("first γ in float32", "1.0000001 is 1 + 2⁻²³, the next number after 1"),
    ),
    demo=False,
    differs="The source gives neither figures nor a number of runs. Two runs of this network that "
    "differ by a rounding error differ in test accuracy after a few epochs, so from one run of "
    "each setting either may come out ahead by noise alone. What ε does to the first layer also "
    "depends on the scale of the pixels, which the source does not give.",
)
