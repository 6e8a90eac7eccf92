"""C13: after fully connected layers, batch normalization adds little where it follows convolutions.

LeNet-5 as C1 trains it, with batch normalization in neither place, in one, or in both; the first
and the last of these arms are C1's own runs, on fewer seeds. Population statistics decide, test
accuracy averaged over the epochs: with the moving average, what a placement does to the lag of its
statistics would be read as what it does to learning.

Pilot runs (seed 100, not used for the verdict): five epochs of 10,000 images with each arm, to see
what a run costs. The arm `both` gained 7 points over conv there; nothing was changed because of it.
For the second edition three seeds with population statistics and full batches: dense layers add 4.7
[3.4, 5.9] points, against the claim.
"""

from __future__ import annotations

import dataclasses
from statistics import fmean

from normkit.lab.claims import c01
from normkit.lab.claims.c01 import ACCURACY, EVALUATED, MEAN_RECALIBRATED, RECALIBRATED
from normkit.lab.claims.sources import ARTICLE, IOFFE, NOTES, TORCHVISION
from normkit.lab.claims.study import (
    TEST,
    TRAIN_LOSS,
    WITH,
    WITHOUT,
    ByArm,
    Dots,
    Endpoint,
    Plan,
    Seeds,
    Series,
    along,
    define,
    learned,
)

NONE, CONV, FC, BOTH = "none", "conv", "fc", "both"
ARMS = {
    NONE: "no BN",
    CONV: "BN after convolutions",
    FC: "BN after dense layers",
    BOTH: "BN after both",
}
PUBLISHED = {NONE: fmean(c01.PUBLISHED[WITHOUT]), BOTH: fmean(c01.PUBLISHED[WITH])}
PLACED = {arm: ACCURACY.at(arm) if arm == NONE else MEAN_RECALIBRATED.at(arm) for arm in ARMS}
"""Test accuracy, mean of the epochs; population statistics where there are any."""
SEEDS = {"quick": 3, "full": 5, "paper": 20}

CLAIM = define(
    key="C13",
    title="After fully connected layers BN adds little where it follows the convolutions",
    topic="architecture",
    statement="Batch normalization after the convolutions gives most of its benefit; normalizing "
    "after the fully connected layers as well adds little.",
    sources=(
        NOTES.says(
            "said of networks with BN after the convolutions; no figures of the four placements"
        ),
        ARTICLE.says(
            f"test accuracy, %, mean of epochs 1–5: BN after all layers {PUBLISHED[BOTH]:.2f}, "
            f"without {PUBLISHED[NONE]:.2f}; BN in one place was not tried",
            "LeNet-5 on Fashion-MNIST",
        ),
        IOFFE.says(
            "BN after every convolution; apart from the classifier their Inception has no fully "
            "connected layers",
            "§4.2",
        ),
    ),
    prediction="BN after the convolutions gains a point or more over none; BN after the fully "
    "connected layers as well gains less than a point more. (A trial of three seeds saw it gain "
    "4.7.)",
    plan=Plan(
        scales={
            preset: dataclasses.replace(scale, seeds=SEEDS[preset])
            for preset, scale in c01.PLAN.scales.items()
        },
        arms={
            NONE: {"norm": "none"},
            CONV: EVALUATED | {"model_options": (("norm_at", CONV),)},
            FC: EVALUATED | {"model_options": (("norm_at", FC),)},
            BOTH: EVALUATED,
        },
        base=c01.PLAN.base,
    ),
    decides={
        "helps": Endpoint(
            "Helps after convolutions: how much higher is mean test accuracy than with no BN?",
            PLACED[CONV] - PLACED[NONE],
            matters=1,
        ),
        "little": Endpoint(
            "Adds little after dense layers: how much higher is it with BN after convolutions "
            "alone than after both?",
            PLACED[CONV] - PLACED[BOTH],
            margin=1,
            provided=learned(BOTH),
        ),
    },
    information={
        "alone": Endpoint(
            "How much higher is mean test accuracy with fc than with none?",
            PLACED[FC] - PLACED[NONE],
            matters=1,
        ),
        "final": Endpoint(
            "How much higher is test accuracy after the last epoch with both than with conv?",
            RECALIBRATED.at(BOTH) - RECALIBRATED.at(CONV),
            matters=1,
        ),
        "loss": Endpoint(
            "How much lower is the training loss of the last epoch with both than with conv?",
            TRAIN_LOSS.at(CONV) - TRAIN_LOSS.at(BOTH),
            matters=0.01,
        ),
    },
    sentence="Test accuracy, averaged over the epochs: BN after the convolutions minus no BN "
    "{helps} points; BN after the convolutions minus BN after both {little} points",
    source_setup={
        "network": "networks with BN after their convolutions; none named",
        "data": "not named",
        "steps": "not named",
        "figures": "none of the four placements",
    },
    figures="test accuracy, mean of the epochs: convolutions alone minus none {helps} points; "
    "convolutions alone minus both {little}",
    at_scale=(
        TORCHVISION.agrees(
            "as to the first part: BN after the convolutions alone lowers the top-1 error of "
            "VGG-16 from 28.41 to 26.63 %",
            "ImageNet",
        ),
    ),
    holds="In LeNet-5, where nearly all weights are in dense layers, BN after the convolutions "
    "changes test accuracy by {helps} points, and leaving it out after the dense layers changes "
    "it by {little} (negative: it is missed there). BN after the dense layers alone changes it by "
    "{alone} against none.",
    practice="Normalize after every hidden layer, convolution or dense, and leave a place out only "
    "after a comparison.",
    charts=(
        Dots(
            "places",
            "Test accuracy by where BN stands, mean of the epochs",
            "where BN stands",
            "test accuracy",
            {"ours": {words: PLACED[arm] for arm, words in ARMS.items()}},
            {"the article's LeNet-5": {ARMS[arm]: value for arm, value in PUBLISHED.items()}},
            more="The seeds are paired, so differences are surer than these look.",
        ),
        along(
            TEST,
            "Test accuracy after each epoch, with population statistics where there are any",
            "test accuracy",
            key="accuracy",
            series=[
                Series(arm, (TEST if arm == NONE else RECALIBRATED).curve, words, arm)
                for arm, words in ARMS.items()
            ],
        ),
    ),
    tables=(
        ByArm(
            (MEAN_RECALIBRATED, ACCURACY, TEST, TRAIN_LOSS),
            "By where BN stands, mean over the seeds, and the article's LeNet-5",
            [
                (f"published, {ARMS[a]}", None, round(v, 2), None, None)
                for a, v in PUBLISHED.items()
            ],
            ARMS,
            (2, 2, 2, 3),
        ),
        Seeds((MEAN_RECALIBRATED, ACCURACY, TEST, TRAIN_LOSS), arms=ARMS),
    ),
    colours={NONE: WITHOUT, BOTH: WITH},
    setup=(("BN stands", "by arm: " + "; ".join(f"{k}: {v}" for k, v in ARMS.items())),),
    demo=False,
    differs="Nearly all of LeNet-5's weights are in its fully connected layers, unlike in the "
    "networks with BN after their convolutions that the source is about. Five epochs are few, "
    "too: the gain may be one of speed rather than of accuracy, and the mean over the epochs "
    "counts it in full.",
)
