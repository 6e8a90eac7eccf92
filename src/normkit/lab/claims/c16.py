"""C16: the normalization batch size sets training noise and the inconsistency of train and test.

Images that are lit differently decide; the same at even light, for information, says when it holds.
"""

from __future__ import annotations

from normkit.lab.claims.measures import ghosts
from normkit.lab.claims.measures.ghosts import EVEN, LARGE, MIDDLE, SMALL, at
from normkit.lab.claims.sources import RETHINKING, WU_JOHNSON
from normkit.lab.claims.study import Endpoint, Quantity, Seeds, define

INCONSISTENCY = ghosts.POPULATION.minus(ghosts.BATCH, "what population statistics cost")
GAP = ghosts.POPULATION.minus(ghosts.TRAINING, "from training to test error")
NAMES = ("training", "test, batch statistics", "test, population statistics")
EVENLY = tuple(f"{name}, even light" for name in NAMES)


def inconsistent(arm: str = ghosts.BN) -> Quantity:
    """Compare what population statistics cost at the smallest size and the largest."""
    return at(INCONSISTENCY, SMALL, arm) - at(INCONSISTENCY, LARGE, arm)


def noisy(arm: str = ghosts.BN) -> Quantity:
    """Compare training error at the smallest size and the largest."""
    return at(ghosts.TRAINING, SMALL, arm) - at(ghosts.TRAINING, LARGE, arm)


CLAIM = define(
    key="C16",
    title="The normalization batch size sets noise and inconsistency",
    statement="How many images share a mean decides how noisy training is and how well population "
    "statistics fit it: few are noisy and inconsistent, very many regularise less.",
    sources=(
        RETHINKING.says(
            "the normalization batch size sets training noise and the inconsistency of train and "
            "test"
        ),
        ghosts.SOURCE,
    ),
    headline=True,
    prediction="Training error falls with the normalization batch size. At 2 population statistics "
    "do worse than batch statistics in the test; at 256 the gap between training and test is wider "
    "than at 16.",
    plan=ghosts.plan(ghosts.BN, EVEN),
    decides={
        "noisy": Endpoint(
            f"Noisy: how much higher is training error at {SMALL} than at {LARGE}?",
            noisy(),
            matters=1,
        ),
        "inconsistent": Endpoint(
            "Inconsistent: how much more does test error rise from batch to population statistics "
            f"at {SMALL} than at {LARGE}?",
            inconsistent(),
            matters=0.5,
        ),
        "regularises": Endpoint(
            "Regularises less: how much wider is the gap from training to test error, with "
            f"population statistics, at {LARGE} than at {MIDDLE}?",
            at(GAP, LARGE) - at(GAP, MIDDLE),
            matters=0.5,
        ),
    },
    information={
        "worse": Endpoint(
            f"How much higher is test error at {LARGE} than at {MIDDLE}, with population "
            "statistics?",
            at(ghosts.POPULATION, LARGE) - at(ghosts.POPULATION, MIDDLE),
            matters=0.5,
        ),
        "even_noisy": Endpoint(
            f"At even light: how much higher is training error at {SMALL} than at {LARGE}?",
            noisy(EVEN),
            matters=1,
        ),
        "even": Endpoint(
            "At even light: how much more does test error rise from batch to population statistics "
            f"at {SMALL} than at {LARGE}?",
            inconsistent(EVEN),
            matters=0.5,
        ),
    },
    sentence=f"Points of error, at a normalization batch size of {SMALL} against {LARGE}: training "
    "{noisy}; what population statistics cost against batch statistics in the test {inconsistent}. "
    f"The gap between training and test, at {LARGE} against {MIDDLE}: {{regularises}}, of which "
    "test error {worse}",
    source_setup=ghosts.SOURCE_SETUP,
    figures=f"at {SMALL} against {LARGE}: training error {{noisy}} points, inconsistency "
    f"{{inconsistent}}; gap at {LARGE} against {MIDDLE} {{regularises}}",
    at_scale=(
        WU_JOHNSON.agrees(
            "from 256 to 2 training error rises from 8.8 to 16.5 % and what population statistics "
            "cost against batch statistics from −1.1 to 6.5 points; from 16 to 1024 validation "
            "error rises from 23.5 to 23.7",
            "ResNet-50 on ImageNet",
        ),
    ),
    holds="It holds where images differ in their statistics: lit differently, two images against "
    f"{LARGE} cost {{inconsistent}} points of inconsistency and {{noisy}} of training error; at "
    "even light, where two images have nearly the mean of all, {even} and {even_noisy}.",
    practice="Normalize over 16 to 64 images, whatever the batch of the optimizer; with fewer, "
    "recalibrate and look at nk.consistency before you trust an evaluation.",
    charts=(
        ghosts.chart("sizes", "Error after training by normalization batch size", *NAMES),
        ghosts.chart("even", "The same at even light", *EVENLY),
    ),
    tables=(
        ghosts.table(*NAMES),
        Seeds((ghosts.SIZE, ghosts.TRAINING, ghosts.BATCH, ghosts.POPULATION)),
    ),
    setup=(ghosts.SETUP,),
    demo=False,
    differs="Training error is read while training, with its noise, so a wider gap may be a "
    "training error that fell and no test error that rose: the result says which of the two it "
    "was. The source has ResNet-50, 100 epochs and a task on which it overfits; a small network "
    "that is trained for a few epochs hardly does, and shows nothing of what noise regularises. "
    "How noisy the mean of two images is depends on how many pixels each layer has, and on how "
    "much images differ: ours differ in light by design.",
)
