"""C20: GroupNorm, LayerNorm and InstanceNorm keep their accuracy at small batches, BN does not.

The number of epochs is fixed, and the learning rate is in proportion to the batch size (the
source's rule). All four normalizers stand after the convolutions only, because an instance of a
dense layer is one number. A rise smaller than BN's may still be a rise, so each is shown by itself;
and so is BN's curve with the statistics of its own test batches, of the size it was trained with,
and with population statistics: what they give back was the test's, what they do not is training's.
BN and GN are trained on images that are lit differently as well, at both ends.

Pilot runs (seed 100, not used for the verdict): 19, to choose image size, rate, schedule, epochs.
"""

from __future__ import annotations

from normkit.lab.claims.measures.small_batches import (
    BATCH_SIZE,
    BATCH_SIZES,
    BN,
    BN_LIT,
    ERROR,
    GN_LIT,
    LARGE,
    OF_BATCH,
    OTHERS,
    PUBLISHED,
    REPAIRED,
    SMALL,
    plan,
    rise,
    size_of,
)
from normkit.lab.claims.sources import COMPARED, WU_HE, WU_JOHNSON, figures
from normkit.lab.claims.study import (
    PERCENT,
    WITH,
    BySetting,
    Endpoint,
    Quoted,
    Seeds,
    Series,
    by_setting,
    define,
    learned,
    over,
    published,
)

CLAIM = define(
    key="C20",
    title="At small batches GroupNorm keeps its accuracy, and BN does not",
    topic="small batches",
    statement="Batch normalization loses accuracy as the batch gets smaller. Group, layer and "
    "instance normalization use the statistics of one image at a time, and do not.",
    sources=(
        COMPARED.says("GroupNorm does not depend on the batch size; no figures are given"),
        WU_HE.says(
            f"error, % at {figures(BATCH_SIZES)} (LN, IN: at {LARGE}): "
            + "; ".join(f"{arm} {figures(errors.values())}" for arm, errors in PUBLISHED.items()),
            "ResNet-50 on ImageNet, batch size per GPU",
        ),
    ),
    headline=True,
    prediction="BN's test error rises by a point or more from 32 to 2, the others' by less.",
    plan=plan,
    decides={
        "bn": Endpoint(
            f"BN loses: how much higher is its test error at {SMALL} than at {LARGE}?",
            rise(BN),
            matters=1,
        ),
        **{
            arm: Endpoint(
                f"{arm} keeps more: how much less does its test error rise than BN's?",
                rise(BN) - rise(arm),
                matters=1,
                provided=learned(arm),
            )
            for arm in OTHERS
        },
    },
    information={
        **{
            name: Endpoint(
                f"At {size} images: how much higher is GN's test error than BN's?",
                ERROR.at("GN", batch_size=size) - ERROR.at(BN, batch_size=size),
                matters=1,
            )
            for name, size in (("eight", 8), ("four", 4))
        },
        "repaired": Endpoint(
            f"How much lower is BN's test error at {SMALL} with population statistics?",
            ERROR.at(BN, batch_size=SMALL) - REPAIRED.at(BN, batch_size=SMALL),
            matters=1,
        ),
        "of_batch": Endpoint(
            f"How much lower is it with the statistics of its test batches of {SMALL}?",
            ERROR.at(BN, batch_size=SMALL) - OF_BATCH.at(BN, batch_size=SMALL),
            matters=1,
        ),
        "lit": Endpoint(
            f"Lit differently: how much higher is BN's test error at {SMALL} than at {LARGE}?",
            rise(BN_LIT),
            matters=1,
        ),
        "lit_less": Endpoint(
            "Lit differently: how much less does GN's test error rise than BN's?",
            rise(BN_LIT) - rise(GN_LIT),
            matters=1,
        ),
        **{
            f"{arm} alone": Endpoint(
                f"{arm} alone: how much lower is its test error at {SMALL} than at {LARGE}?",
                -rise(arm),
                margin=1,
            )
            for arm in OTHERS
        },
    },
    sentence=f"From a batch size of {LARGE} to one of {SMALL}, BN's test error changes by {{bn}} "
    "points; BN's change minus that of GN is {GN}, of LN {LN}, of IN {IN}",
    source_setup={
        "network": "ResNet-50",
        "data": "ImageNet, 1.28 M photographs",
        "steps": "100 epochs, batch size per GPU, learning rate in proportion",
        "figures": "error from 32 to 2: BN 23.6 to 34.7 %, GN 24.1 to 24.1",
    },
    figures=f"change of test error from {LARGE} to {SMALL}: BN {{bn}} points; BN's minus GN's "
    "{GN}, LN's {LN}, IN's {IN}",
    at_scale=(
        WU_HE.agrees(
            "BN's error rises by 11.1 points from 32 to 2 and GN's by none; at 32 BN is ahead, "
            "23.6 % against 24.1, LN 25.3 and IN 28.4",
            "ResNet-50 on ImageNet",
        ),
        WU_JOHNSON.agrees(
            "from 32 to 2 images, SGD's batch being the same, error rises from 23.4 to 32.5 % with "
            "population statistics, but only from 24.5 to 26.0 with batch statistics: most of what "
            "BN loses is the inconsistency of training and test",
            "ResNet-50 on ImageNet",
        ),
    ),
    holds=f"From {LARGE} to {SMALL} BN's test error changes by {{bn}} points; at {SMALL}, "
    "population statistics take {repaired} off it and the statistics of its test batches "
    "{of_batch}. With images that are lit differently it changes by {lit}, and BN's change minus "
    "GN's is {lit_less}. At 8 images GN's test error minus BN's is {eight} points, and at 4 "
    "{four}.",
    practice="Where a device sees only a few images, compare BN with GroupNorm and LayerNorm, or "
    "normalize across devices. If the network is already trained, recalibrate it first: that gives "
    "back what the statistics cost, not what noise cost training.",
    charts=(
        by_setting(
            size_of,
            ERROR,
            "Test error by batch size",
            "batch size",
            "test error",
            x_log=True,
            series=[
                *(Series(arm, over(size_of, ERROR)) for arm in PUBLISHED),
                Series(BN, over(size_of, OF_BATCH), "BN, batch statistics"),
                Series(BN, over(size_of, REPAIRED), "BN, population statistics"),
            ],
        ),
        Quoted(
            "published",
            "The source's errors, ResNet-50 on ImageNet",
            "batch size",
            "test error",
            PERCENT,
            [published(arm, errors) for arm, errors in PUBLISHED.items()],
            x_log=True,
        ),
    ),
    tables=(
        BySetting(
            "Test error, %, by batch size: mean over seeds; published: ResNet-50 on ImageNet",
            "normalizer",
            BATCH_SIZES,
            lambda size: {"batch_size": size},
            [(arm, arm, ERROR, errors) for arm, errors in PUBLISHED.items()]
            + [
                ("BN, population statistics", BN, REPAIRED, {}),
                ("BN, batch statistics", BN, OF_BATCH, {}),
                ("BN, lit differently", BN_LIT, ERROR, {}),
                ("GN, lit differently", GN_LIT, ERROR, {}),
            ],
        ),
        Seeds((BATCH_SIZE, ERROR, REPAIRED)),
    ),
    colours={BN: WITH, "GN": "GroupNorm", "LN": "LayerNorm"},
    setup=(("normalizers stand", "after the convolutions"), ("learning rate", "∝ batch size")),
    demo=False,
    differs="The source trains ResNet-50 on ImageNet for a hundred epochs, where the noise of the "
    "statistics of two images adds up over more than fifty normalization layers. A small network "
    "has few of them. With the number of epochs fixed, a small batch also means more steps, which "
    "help all four normalizers and can hide what BN loses. IN keeps more than BN and is worse "
    "than BN at every size but the smallest; these groups have two channels each.",
)
