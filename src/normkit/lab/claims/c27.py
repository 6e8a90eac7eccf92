"""C27: a tanh or an erf does what LayerNorm does in a transformer.

A small transformer on patches of 7×7 pixels (16 tokens of 32 channels, 6 blocks, pre-norm), Adam
with a cosine. Dynamic Tanh and Dynamic erf stand in for all its LayerNorms, with the sources' first
value of α, 0.5, and at LayerNorm's learning rate, as in the sources. Less than a point of test
accuracy may be lost. Where a network trains as well with nothing in the place of LayerNorm, a tanh
in its place shows nothing. So the network was searched for until it needs something there: with
He's first weights it does. As it was chosen for that, this is no part of the claim but its
condition: it is shown, and where it is not met both parts stay open. With PyTorch's smaller first
weights nothing is needed; arms with these show what depends on them, and on the first α.

Pilot runs (seeds 100 to 102, not used for the verdict): thirty-six of 11 to 37 s, over depth,
width, first weights, learning rate (LayerNorm's best of three was taken) and α, until a network
with nothing in the place failed and LayerNorm's did not. There, on four epochs of 8,000 images,
test accuracy was 77.9 % with LayerNorm, 78.2 with Dynamic Tanh, 78.5 with Dynamic erf and 20.4 with
nothing. With PyTorch's first weights, on five epochs of 12,000, it was 82.1 with LayerNorm, 79.6
with Dynamic Tanh and 82.3 with nothing; on 10,000 images Dynamic Tanh's was 78.1 with α started at
0.5, 80.9 at 2 and 79.6 at 4.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from normkit.lab.claims.claim import Evidence, Preset
from normkit.lab.claims.sources import ALEKSEEV, CHEN_DERF, VERMA, ZHU
from normkit.lab.claims.study import (
    TEST,
    TRAIN,
    WITHOUT,
    At,
    ByArm,
    Dots,
    Endpoint,
    Plan,
    Scale,
    Seeds,
    along,
    define,
    learned,
)

LN, DYT, DERF, NONE = "LayerNorm", "Dynamic Tanh", "Dynamic erf", "nothing"
SMALL = "PyTorch's weights"
LN_SMALL, DYT_SMALL, NONE_SMALL = (f"{arm}, {SMALL}" for arm in (LN, DYT, NONE))
DYT_LARGER = f"{DYT_SMALL}, α 2"
NORM = {LN: "layer", DYT: "dyt", DERF: "derf", NONE: "none"}
PUBLISHED = {LN: 82.3, DYT: 82.5, DERF: 82.8}
HE, PYTORCH = "kaiming", "pytorch"
SIZES = {"patch": 7, "depth": 6, "dim": 32, "heads": 2}
VIT_B = {"patch": 4, "depth": 12, "dim": 768, "heads": 12}
FEWER: dict[Preset, int] = {"quick": 2, "full": 3, "paper": 3}


def first(init: str) -> dict[str, object]:
    """Name the transformer with these first weights; at the sources' scale, of ViT-B's sizes."""

    def options(at: At) -> tuple[tuple[str, int | str], ...]:
        return (*(VIT_B if at.preset == "paper" else SIZES).items(), ("init", init))

    return {"model_options": options}


LEAST = 5
"""The points of test accuracy that the network must lose with nothing in LayerNorm's place."""
NEEDED = TEST.at(LN) - TEST.at(NONE)


def needed(evidence: Evidence) -> bool:
    """Require that LayerNorm learns something, and that something is needed in its place."""
    lost = NEEDED.shown(evidence)
    return learned(LN)(evidence) and bool(lost) and fmean(lost) >= LEAST


def gain(question: str, arm: str, against: str, **rule: Any) -> Endpoint:
    """Compare the last test accuracy of two arms."""
    return Endpoint(question, TEST.at(arm) - TEST.at(against), **rule)


CLAIM = define(
    key="C27",
    title="A tanh or an erf does what LayerNorm does in a transformer",
    topic="architecture",
    statement="LayerNorm in a transformer can be replaced by a function of each value alone, "
    "γ·tanh(αx) + β or γ·erf(αx + s) + β with a learned α: no mean and no variance are needed, and "
    "nothing is lost, in a network that needs something there.",
    sources=(
        ZHU.says(
            "ImageNet accuracy, %: ViT-B 82.3 with LayerNorm, 82.5 with Dynamic Tanh; ViT-L 83.1 "
            "and 83.6",
        ),
        CHEN_DERF.says(
            "ImageNet accuracy, %, of the same ViT with LayerNorm, Dynamic Tanh and Dynamic erf: "
            "82.3 82.5 82.8",
            "figure 1",
        ),
    ),
    prediction="Test accuracy is less than a point below LayerNorm's with either function, in a "
    "network that loses five points or more with nothing in the place.",
    plan=Plan(
        scales={
            "quick": Scale(seeds=3, train=8_000, test=5_000, epochs=3),
            "full": Scale(seeds=5, train=10_000, test=5_000, epochs=5),
            "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=300),
        },
        arms={
            **{arm: {"norm": norm, **first(HE)} for arm, norm in NORM.items()},
            **{f"{arm}, {SMALL}": {"norm": NORM[arm], **first(PYTORCH)} for arm in (LN, DYT, NONE)},
            DYT_LARGER: {"norm": "dyt", "norm_options": (("alpha", 2.0),), **first(PYTORCH)},
        },
        base={
            "model": "vit",
            "act": "gelu",
            "optimizer": "adam",
            "schedule": "cosine",
            "lr": 3e-3,
            "batch_size": 64,
        },
        presets={"paper": {"lr": 5e-4, "batch_size": 512}},
        seeds=dict.fromkeys((LN_SMALL, DYT_SMALL, NONE_SMALL, DYT_LARGER), FEWER),
    ),
    decides={
        "tanh": gain(
            "Tanh: how much higher is test accuracy with Dynamic Tanh than with LayerNorm?",
            DYT,
            LN,
            margin=1,
            provided=needed,
        ),
        "erf": gain(
            "Erf: how much higher is it with Dynamic erf than with LayerNorm?",
            DERF,
            LN,
            margin=1,
            provided=needed,
        ),
    },
    information={
        "needed": Endpoint(
            "How much lower is test accuracy with nothing in LayerNorm's place?",
            NEEDED,
            matters=LEAST,
        ),
        "better": gain(
            "How much higher is it with Dynamic erf than with Dynamic Tanh?", DERF, DYT, matters=0.5
        ),
        "small": gain(
            "With PyTorch's first weights, how much higher is it with Dynamic Tanh than "
            "with LayerNorm?",
            DYT_SMALL,
            LN_SMALL,
            matters=1,
        ),
        "larger": gain(
            "With PyTorch's first weights, how much higher is it with Dynamic Tanh and α started "
            "at 2 than with LayerNorm?",
            DYT_LARGER,
            LN_SMALL,
            matters=1,
        ),
        "best": gain(
            "Each with the first weights that suit it: how much higher is it with Dynamic Tanh "
            "than with LayerNorm?",
            DYT,
            LN_SMALL,
            matters=1,
        ),
        "spared": gain(
            "With PyTorch's first weights, how much higher is it with nothing there than with "
            "LayerNorm?",
            NONE_SMALL,
            LN_SMALL,
            matters=1,
        ),
    },
    sentence="Test accuracy minus LayerNorm's is {tanh} points with Dynamic Tanh in its place, and "
    "{erf} with Dynamic erf; LayerNorm's minus that with nothing there is {needed}",
    source_setup={
        "network": "ViT-B, 86 million parameters",
        "data": "ImageNet-1K, 1.28 million images, 224 pixels",
        "steps": "batches of 4,096, learning rate 4e-3 (the authors' code)",
        "figures": "accuracy 82.3 % with LayerNorm, 82.5 with Dynamic Tanh, 82.8 with Dynamic erf",
    },
    figures="test accuracy minus LayerNorm's: Dynamic Tanh {tanh} points, Dynamic erf {erf}",
    at_scale=(
        ZHU.agrees("ViT-L 83.1 % with LayerNorm, 83.6 % with Dynamic Tanh", "ImageNet"),
        CHEN_DERF.agrees("82.3 % with LayerNorm, 82.8 % with Dynamic erf", "ImageNet"),
        VERMA.contradicts(
            "as to more data: with Dynamic Tanh validation loss is 27.3 % lower at 1 million "
            "tokens, but 18.8 % higher at 118 million (64 million parameters)",
            "GPT-2 family",
        ),
        ALEKSEEV.contradicts(
            "as to ease: at the first weights gradients grow faster with depth than with "
            "LayerNorm, so both functions can be more sensitive to first weights and need careful "
            "tuning",
            "theory, and measured in deep vision transformers",
        ),
    ),
    holds="With He's first weights, nothing in LayerNorm's place costs {needed} points of test "
    "accuracy, and Dynamic Tanh minus LayerNorm is {tanh}. With PyTorch's smaller ones, having "
    "nothing there changes it by {spared}, and Dynamic Tanh by {small} with the sources' first α "
    "of 0.5 and by {larger} with 2. With the first weights that suit each, Dynamic Tanh minus "
    "LayerNorm is {best}.",
    practice="A lead after minutes of training is no reason to replace LayerNorm: keep it unless "
    "its cost hurts. If you replace it, tune α and the scale of the first weights together, and "
    "compare with nothing in its place.",
    charts=(
        along(TEST, "Test accuracy after each epoch", "test accuracy"),
        Dots(
            "gains",
            "Test accuracy minus that with LayerNorm and the same first weights",
            "in LayerNorm's place",
            "gain in test accuracy",
            {
                "He's weights": {arm: TEST.at(arm) - TEST.at(LN) for arm in (DYT, DERF, NONE)},
                SMALL: {
                    DYT: TEST.at(DYT_SMALL) - TEST.at(LN_SMALL),
                    f"{DYT}, α 2": TEST.at(DYT_LARGER) - TEST.at(LN_SMALL),
                    NONE: TEST.at(NONE_SMALL) - TEST.at(LN_SMALL),
                },
            },
            difference=True,
            more="Less than a point may be lost.",
        ),
    ),
    tables=(
        ByArm(
            (TEST, TRAIN),
            "Accuracy with each, and in the sources",
            [(f"{arm}, ViT-B on ImageNet, published", x, None) for arm, x in PUBLISHED.items()],
        ),
        Seeds((TEST, TRAIN)),
    ),
    colours={NONE: WITHOUT},
    setup=(
        ("first weights", "He's normal (kaiming, fan in), or PyTorch's own where the arm says so"),
        ("α", "one for each layer, learned; starts at 0.5, or at 2 where the arm says so"),
    ),
    demo=False,
    differs="The sources train for hundreds of epochs, with warm-up and augmentation; here a small "
    "network learns for minutes, where the one that starts faster wins. What stands in "
    "LayerNorm's place matters by the scale of what comes in: LayerNorm makes it one, a tanh with "
    "α 0.5 passes small values on at half their size, and a residual network with small weights "
    "needs neither.",
)
