"""C19: a batch whose composition depends on the label leaks it.

In the source, a detector's second stage normalizes over the regions of one image. Here every group
of 32 images holds 16 of each of two labels, and eight such groups make a batch. All arms see the
same batches; the shuffled one moves the images of a batch to random places before it groups them.

Pilot runs (seed 100, not used for the verdict): 25 settings, to find one in which the leaking arm
trains. Wherever training accuracy passed 80 %, test accuracy was lower, by 50 to 70 points with one
or two labels in a group and by 5 to 11 with four or all ten. Seeds 0 and 1 were run twice before
and stopped, once for a small last batch that held all labels (35 and 26 % became 58 and 72 %) and
once for their cost. The endpoints stayed as they were. For the tour, one seed (100) of ten epochs:
the leak cost 60 points in the test and gained nothing in training yet.
"""

from __future__ import annotations

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.sources import RETHINKING, WU_JOHNSON
from normkit.lab.claims.study import (
    NARROW_RESNET,
    PERCENT,
    TEST,
    TRAIN,
    WITHOUT,
    Curves,
    Endpoint,
    Plan,
    Scale,
    Seeds,
    Series,
    along,
    define,
    last,
    mean_of,
)
from normkit.lab.findings import Table

GROUP, LABELS = 32, 2
LEAK, SHUFFLED, WHOLE = "BN over each group", "BN, shuffled", "BN over the whole batch"
GROUPNORM, NONE = "GroupNorm", "without"
CURES = (SHUFFLED, WHOLE, GROUPNORM)
COMPOSED, RANDOM = ("composed", GROUP, LABELS), ("batch", GROUP)
ON_COMPOSED = last("test_accuracy", "on composed test batches", under=COMPOSED)
# Arm, statistics in the test, our measure, and the source's box and mask AP.
ROWS = (
    (LEAK, "moving average", TEST, 40.1, 36.2),
    (LEAK, "of composed batches", ON_COMPOSED, 41.3, 37.0),
    (LEAK, "of random batches", last("test_accuracy", "", under=RANDOM), None, None),
    (SHUFFLED, "moving average", TEST, 41.6, 37.6),
    (WHOLE, "moving average", TEST, 41.7, 37.7),
    (GROUPNORM, "none", TEST, 41.4, 37.7),
    (NONE, "none", TEST, 41.1, 36.9),
)
GAINS = {
    arm: Endpoint(
        f"{name}: how much higher is test accuracy than with BN over each group?",
        TEST.at(arm) - TEST.at(LEAK),
        matters=1,
    )
    for arm, name in {**dict(zip(CURES, CURES, strict=True)), NONE: "No normalization"}.items()
}
GROUPS = (("group", GROUP), ("labels", LABELS))
GHOST = {"norm": "ghost", "norm_options": (("ghost_size", GROUP),)}
LENET = {"model": "lenet5", "size": 16}


def beside_published(evidence: Evidence) -> Table:
    """Our accuracies, and the source's average precisions."""
    rows = []
    for arm, statistics, accuracy, *published in ROWS:
        means = (mean_of(evidence.of(arm), measure) for measure in (TRAIN, accuracy))
        rows.append((arm, statistics, *(PERCENT.cell(mean, 1) for mean in means), *published))
    columns = ("arm", "statistics in the test", "training, %", "test, %", "box AP", "mask AP")
    return Table("published", "Accuracy (mean over seeds), and AP on COCO", columns, tuple(rows))


CLAIM = define(
    key="C19",
    title="Batches composed by label leak it through batch normalization",
    topic="statistics",
    statement="Where the composition of a batch depends on the labels, a network with batch "
    "normalization learns to read them off the batch: training looks good and the test fails, "
    "unless the images are shuffled first, normalized over more of them, or normalized one by one.",
    sources=(
        RETHINKING.says("information leaks where the examples of a batch are not independent"),
        WU_JOHNSON.says(
            "; ".join(f"{arm}, {how} {box}/{mask}" for arm, how, _, box, mask in ROWS if box),
            "§6, box/mask AP of Mask R-CNN on COCO, BN in its head, a group: regions on one GPU",
        ),
    ),
    headline=True,
    prediction="BN over groups of two labels has the highest accuracy on its training batches and "
    "by far the lowest on test images, except in batches composed as in training.",
    plan=Plan(
        scales={
            "tour": Scale(seeds=3, train=10_240, test=2_000, epochs=8),
            "quick": Scale(seeds=5, train=10_240, test=5_000, epochs=20),
            "full": Scale(seeds=5, train=10_240, test=5_000, epochs=20),
            "paper": Scale(seeds=10, train=60_000, test=10_000, epochs=50),
        },
        arms={
            LEAK: {**GHOST, "final_evaluations": (COMPOSED, RANDOM)},
            SHUFFLED: {**GHOST, "composition": (*GROUPS, ("mixed", True))},
            WHOLE: {"norm": "batch"},
            GROUPNORM: {"norm": "group"},
            NONE: {"norm": "none"},
        },
        base={"lr": 0.1, "momentum": 0.9, "batch_size": 8 * GROUP, "composition": GROUPS},
        presets={
            "tour": LENET | {"evaluate_every": 4},
            "quick": LENET,
            "full": LENET,
            "paper": NARROW_RESNET["paper"],
        },
        seeds={NONE: {"tour": 0}},
    ),
    decides={
        "looks": Endpoint(
            "Training looks good: how much higher is training accuracy than if shuffled?",
            TRAIN.at(LEAK) - TRAIN.at(SHUFFLED),
            matters=0.5,
        ),
        **{cure: GAINS[cure] for cure in CURES},
    },
    information={NONE: GAINS[NONE]},
    sentence="Training accuracy with BN over each group minus that with shuffled BN is {looks} "
    "points. Test accuracy with each cure minus that with BN over each group: "
    + ", ".join(f"{{{cure}}} ({cure})" for cure in CURES),
    source_setup={
        "network": "Mask R-CNN with BN in its head",
        "data": "COCO; a group is the regions on one GPU",
        "steps": "not given here",
        "figures": "box AP: BN over the regions of a GPU 40.1, shuffled 41.6, synchronised 41.7, "
        "GroupNorm 41.4",
    },
    figures="test accuracy with each cure minus that with BN over each group: "
    + ", ".join(f"{{{cure}}} points ({cure})" for cure in CURES),
    at_scale=(
        WU_JOHNSON.agrees(
            "the leak costs 1.5 points of box AP against shuffling and 1.6 against synchronising; "
            "batch statistics in the test, of regions composed as in training, give back 1.2",
            "Mask R-CNN on COCO, §6",
        ),
    ),
    holds="A group can leak only what it says of its labels; here it has two in 32 images, which "
    "says much. Against shuffled BN, BN over each group differs by {looks} points on its training "
    "batches, and shuffling changes its test accuracy by {BN, shuffled}.",
    practice="Shuffle before you normalize, across processes and across what one example yields "
    "(regions, crops, frames, augmented pairs). Otherwise synchronise the statistics or use "
    "GroupNorm.",
    charts=(
        Curves(
            "leak",
            "Accuracy in training and in the test, leaking and shuffled",
            "epoch",
            "accuracy",
            PERCENT,
            series=[
                Series(arm, of.curve, f"{arm}, {name}", arm)
                for arm in (LEAK, SHUFFLED)
                for name, of in (("training", last("epoch_train_accuracy", "")), ("test", TEST))
            ],
        ),
        along(TEST, "Test accuracy after each epoch", "test accuracy", key="accuracy"),
    ),
    tables=(beside_published, Seeds((TRAIN, TEST, ON_COMPOSED))),
    colours={NONE: WITHOUT},
    setup=(("a batch", f"8 groups of {GROUP} images, 16 of each of {LABELS} labels"),),
    demo=False,
    differs="Two labels in 32 images leak far more than the regions of a picture do, so the "
    "effect here says that there is a leak, not how large one is in practice. BN also removes "
    "what the images of a group have in common, so training on such batches is harder.",
)
