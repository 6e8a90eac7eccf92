"""C18: with several domains, SGD, population and test statistics must be shared alike.

The two domains are the images and their negatives, with the same labels. In SGD they may be
normalized together or each by itself; so may the population statistics that the test uses; and γ
and β may be shared or one for each domain. The source has all six combinations, with the five
levels of a detector's feature pyramid as its domains. Here three networks are trained, each tested
with both kinds of population statistics, and two whose normalization has no phases.

Pilot runs (seed 100, not used for the verdict): eight, of LeNet-5 and ResNet-18, with negatives and
with faded images (a third of the contrast, lighter). Faded images made no difference: normalizing
each domain by itself undoes such a change in the first layer.
"""

from __future__ import annotations

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.sources import RETHINKING, WU_JOHNSON
from normkit.lab.claims.study import (
    NARROW_RESNET,
    PERCENT,
    TEST,
    WITHOUT,
    Curves,
    Endpoint,
    Plan,
    Scale,
    Seeds,
    Series,
    define,
    last,
    mean_of,
)
from normkit.lab.findings import Table

TOGETHER, APART, ALL_APART = "SGD shared", "SGD specific", "SGD and affine specific"
GROUPNORM, NONE = "GroupNorm", "without"
SAMPLES, BATCH_SIZE = 2_048, 128
CONDITIONS = tuple((f"domains-{kind}", SAMPLES, BATCH_SIZE) for kind in ("shared", "specific"))
SHARED = last("test_accuracy", "shared population statistics", under=CONDITIONS[0])
SPECIFIC = last("test_accuracy", "specific population statistics", under=CONDITIONS[1])
# Network; what is shared; our measure; the source's AP. In each of three pairs the phases of the
# first agree (of two curves with one colour the first is solid).
WAYS = (
    (TOGETHER, "all shared", SHARED, 39.1),
    (TOGETHER, "all shared but population statistics", SPECIFIC, 2.1),
    (APART, "all specific but γ and β", SPECIFIC, 39.1),
    (APART, "specific in SGD alone", SHARED, 34.1),
    (ALL_APART, "all specific", SPECIFIC, 39.2),
    (ALL_APART, "all specific but population statistics", SHARED, 35.5),
    (GROUPNORM, "GroupNorm", TEST, 39.5),
    (NONE, "no normalization", TEST, 38.7),
)


def ways_table(evidence: Evidence) -> Table:
    """Accuracy and published AP by what is shared."""
    rows = tuple(
        (name, PERCENT.cell(mean_of(evidence.of(arm), accuracy), 1), published)
        for arm, name, accuracy, published in WAYS
    )
    columns = ("statistics, γ and β of the domains", "ours: test accuracy, %", "published: AP")
    title = "Ours (mean over seeds and both domains) and published (RetinaNet, five levels)"
    return Table("ways", title, columns, rows)


CLAIM = define(
    key="C18",
    title="Statistics of several domains must be shared alike in all phases",
    topic="domains",
    statement="A network that sees several domains works if their statistics are shared in all "
    "three phases, SGD, population statistics and test, or specific to each domain in all three. "
    "Where the phases disagree, accuracy is lost.",
    sources=(
        RETHINKING.says("statistics of several domains must be treated alike in all three phases"),
        WU_JOHNSON.says(
            "AP by what SGD, population statistics (and test), and γ and β share: "
            + "; ".join(f"{name} {published:g}" for _, name, _, published in WAYS),
            "§5, RetinaNet with BN in a head shared by five feature levels, COCO",
        ),
    ),
    prediction="Each network is most accurate with population statistics shared as in SGD, and "
    "loses a point or more with the others.",
    plan=Plan(
        scales={
            "quick": Scale(seeds=5, train=5_120, test=2_000, epochs=5),
            "full": Scale(seeds=5, train=5_120, test=2_000, epochs=5),
            "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=50),
        },
        arms={
            TOGETHER: {"norm": "batch"},
            APART: {"norm": "domain", "norm_options": (("domains", 2),)},
            ALL_APART: {
                "norm": "domain",
                "norm_options": (("domains", 2), ("share_affine", False)),
            },
            GROUPNORM: {"norm": "group", "evaluations": ()},
            NONE: {"norm": "none", "evaluations": ()},
        },
        base={
            "domains": "negatives",
            "lr": 0.05,
            "momentum": 0.9,
            "batch_size": BATCH_SIZE,
            "evaluations": CONDITIONS,
        },
        presets=NARROW_RESNET,
    ),
    decides={
        arm: Endpoint(
            f"{arm}: how much higher is test accuracy with {like.name} than with {unlike.name}?",
            like.at(arm) - unlike.at(arm),
            matters=1,
        )
        for (arm, _, like, _), (_, _, unlike, _) in zip(WAYS[0:6:2], WAYS[1:6:2], strict=True)
    },
    sentence="Test accuracy with population statistics shared as in SGD minus that with the "
    "others, in points: {SGD shared} (SGD shared), {SGD specific} (SGD specific), {SGD and affine "
    "specific} (affine too)",
    source_setup={
        "network": "RetinaNet with BN in a head shared by five feature levels",
        "data": "COCO; the levels of the feature pyramid are the domains",
        "steps": "not given here",
        "figures": "AP: shared in all phases 39.1, specific in all but γ and β 39.1; population "
        "specific only 2.1, shared only 34.1",
    },
    figures="test accuracy where the phases agree minus where they do not: {SGD shared} (SGD "
    "shared), {SGD specific} (specific) and {SGD and affine specific} points (γ and β too)",
    at_scale=(
        WU_JOHNSON.agrees(
            "39.1 AP where the phases agree; 2.1 and 34.1 where they do not, and 35.5 with γ and "
            "β for each domain",
            "RetinaNet on COCO, §5",
        ),
    ),
    holds="With images and their negatives as the domains, phases that agree minus phases that do "
    "not are worth {SGD shared} points of test accuracy if SGD shares the statistics, {SGD "
    "specific} if it does not, and {SGD and affine specific} if γ and β are each domain's own too. "
    "With images and faded ones, which one normalization makes alike, pilot runs saw no loss.",
    practice="Give each domain its own statistics in training, in recalibration and in the test "
    "(nk.DomainBatchNorm2d, nk.use_domain), or share one set in all three.",
    charts=(
        Curves(
            "ways",
            "Test accuracy by what the domains share",
            "epoch",
            "test accuracy, mean of both domains",
            PERCENT,
            series=[Series(arm, accuracy.curve, name, arm) for arm, name, accuracy, _ in WAYS],
            more="Shared or specific are the statistics of SGD, those of population and test, "
            "and γ and β. Broken lines are those whose phases disagree.",
        ),
    ),
    tables=(ways_table, Seeds((SHARED, SPECIFIC, TEST))),
    colours={NONE: WITHOUT},
    setup=(
        ("domains", "the images, and their negatives; every image is seen in both"),
        ("population statistics", f"of {SAMPLES:,} training images in each domain"),
    ),
    demo=False,
    differs="The source's domains are five levels of a feature pyramid, whose statistics differ "
    "strongly. An image and its negative may differ more than those, or less. What affine "
    "parameters for each domain can compensate may be small as well.",
)
