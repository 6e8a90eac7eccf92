"""C20: GroupNorm, LayerNorm and InstanceNorm keep their accuracy at small batches, BN does not.

The number of epochs is fixed, and the learning rate is in proportion to the batch size (the
source's rule). All four normalizers stand after the convolutions only, because an instance of a
dense layer is one number. A rise smaller than BN's may still be a rise, so each is shown by itself.

Pilot runs (seed 100, not used for the verdict): 19, to choose image size, rate, schedule, epochs.
"""

from __future__ import annotations

from normkit.lab.claims.sources import COMPARED, WU_HE, figures
from normkit.lab.claims.study import (
    NARROW_RESNET,
    NUMBER,
    TEST,
    WITH,
    BySetting,
    Endpoint,
    Measure,
    Plan,
    Scale,
    Seeds,
    by_setting,
    define,
    error,
    final,
    last,
    learned,
    population,
    published,
)

BATCH_SIZES = (32, 16, 8, 4, 2)
LARGE, SMALL = BATCH_SIZES[0], BATCH_SIZES[-1]
RATE = 0.04 / 32  # per image of a batch
BN, OTHERS = "BN", {"GN": "group", "LN": "layer", "IN": "instance"}
PUBLISHED = {
    BN: dict(zip(BATCH_SIZES, (23.6, 23.7, 24.8, 27.3, 34.7), strict=True)),
    "GN": dict(zip(BATCH_SIZES, (24.1, 24.2, 24.0, 24.2, 24.1), strict=True)),
    "LN": {LARGE: 25.3},
    "IN": {LARGE: 28.4},
}
ERROR = error(TEST, "test error")
REPAIRED = error(last("test_accuracy", "", under=final("population")), "population statistics")
BATCH_SIZE = Measure("batch size", lambda run: run.config.batch_size, NUMBER)
LENET = {"model": "lenet5", "model_options": (("norm_at", "conv"),), "size": 16}
RISES = {a: ERROR.at(a, batch_size=SMALL) - ERROR.at(a, batch_size=LARGE) for a in PUBLISHED}

CLAIM = define(
    key="C20",
    title="At small batches GroupNorm keeps its accuracy, and BN does not",
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
    prediction="BN's test error rises by a point or more from 32 to 2, the others' by less.",
    plan=Plan(
        scales={
            "quick": Scale(seeds=5, train=4_000, test=4_000, epochs=4),
            "full": Scale(seeds=5, train=4_000, test=4_000, epochs=4),
            "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=30),
        },
        arms={
            BN: {"norm": "batch", "final_evaluations": population(10_000, 256)},
            **{arm: {"norm": norm} for arm, norm in OTHERS.items()},
        },
        base={"momentum": 0.9, "schedule": "cosine"},
        presets={"quick": LENET, "full": LENET, "paper": NARROW_RESNET["paper"]},
        settings=[{"batch_size": n, "lr": RATE * n, "loss_every": 160 // n} for n in BATCH_SIZES],
    ),
    decides={
        "bn": Endpoint(
            f"BN loses: how much higher is its test error at {SMALL} than at {LARGE}?",
            RISES[BN],
            matters=1,
        ),
        **{
            arm: Endpoint(
                f"{arm} keeps more: how much less does its test error rise than BN's?",
                RISES[BN] - RISES[arm],
                matters=1,
                provided=learned(arm),
            )
            for arm in OTHERS
        },
    },
    information={
        "repaired": Endpoint(
            f"How much lower is BN's test error at {SMALL} with population statistics?",
            ERROR.at(BN, batch_size=SMALL) - REPAIRED.at(BN, batch_size=SMALL),
            matters=1,
        ),
        **{
            f"{arm} alone": Endpoint(
                f"{arm} alone: how much lower is its test error at {SMALL} than at {LARGE}?",
                -RISES[arm],
                margin=1,
            )
            for arm in OTHERS
        },
    },
    sentence=f"From a batch size of {LARGE} to one of {SMALL}, BN's test error rises by {{bn}} "
    "points; that of GN rises by {GN} points less, LN {LN}, IN {IN}",
    charts=(
        by_setting(
            lambda run: run.config.batch_size,
            ERROR,
            "Test error by batch size",
            "batch size",
            "test error",
            x_log=True,
            extra=[published(arm, errors, note="ImageNet") for arm, errors in PUBLISHED.items()],
        ),
    ),
    tables=(
        BySetting(
            "Test error, %, by batch size: mean over seeds; published: ResNet-50 on ImageNet",
            "normalizer",
            BATCH_SIZES,
            lambda size: {"batch_size": size},
            [(arm, arm, ERROR, errors) for arm, errors in PUBLISHED.items()]
            + [("BN, population statistics", BN, REPAIRED, {})],
        ),
        Seeds((BATCH_SIZE, ERROR, REPAIRED)),
    ),
    colours={BN: WITH, "GN": "GroupNorm"},
    setup=(("normalizers stand", "after the convolutions"), ("learning rate", "∝ batch size")),
    demo=False,
    differs="The source trains ResNet-50 on ImageNet for a hundred epochs, where the noise of the "
    "statistics of two images adds up over more than fifty normalization layers. A small network "
    "has few of them. With the number of epochs fixed, a small batch also means more steps, which "
    "help all four normalizers and can hide what BN loses.",
)
