"""C16: the normalization batch size sets training noise and the inconsistency of train and test."""

from __future__ import annotations

import dataclasses

from normkit.lab.claims.measures import ghosts
from normkit.lab.claims.measures.ghosts import LARGE, MIDDLE, SMALL, at
from normkit.lab.claims.sources import RETHINKING
from normkit.lab.claims.study import Endpoint, Seeds, define

INCONSISTENCY = ghosts.POPULATION.minus(ghosts.BATCH, "what population statistics cost")
GAP = ghosts.POPULATION.minus(ghosts.TRAINING, "from training to test error")
NAMES = ("training", "test, batch statistics", "test, population statistics")

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
    prediction="Training error falls with the normalization batch size. At 2 population statistics "
    "do worse than batch statistics in the test; at 256 the gap between training and test is wider "
    "than at 16.",
    plan=dataclasses.replace(ghosts.PLAN, arms={ghosts.BN: ghosts.PLAN.arms[ghosts.BN]}),
    decides={
        "noisy": Endpoint(
            f"Noisy: how much higher is training error at {SMALL} than at {LARGE}?",
            at(ghosts.TRAINING, SMALL) - at(ghosts.TRAINING, LARGE),
            matters=1,
        ),
        "inconsistent": Endpoint(
            "Inconsistent: how much more does test error rise from batch to population statistics "
            f"at {SMALL} than at {LARGE}?",
            at(INCONSISTENCY, SMALL) - at(INCONSISTENCY, LARGE),
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
    },
    sentence=f"Points of error, at a normalization batch size of {SMALL} against {LARGE}: training "
    "{noisy}; what population statistics cost against batch statistics in the test {inconsistent}. "
    f"The gap between training and test, at {LARGE} against {MIDDLE}: {{regularises}}, of which "
    "test error {worse}",
    charts=(ghosts.chart("sizes", "Error after training by normalization batch size", *NAMES),),
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
    "Small images matter as well: how noisy the mean of two images is depends on how many pixels "
    "each layer has.",
)
