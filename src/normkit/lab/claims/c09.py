"""C9: a somewhat larger learning rate works, an unbounded one does not; adaptive methods remove it.

SGD's runs are C3's with BN and more rates; the others differ in optimizer and rate only. The grids
have six rates a decade: with three, as the first edition had, the rounding of four ends to a step
would alone leave an effect of a factor of two open, whatever the number of seeds.
Adadelta's rate multiplies the step that its paper prescribes. Training accuracy decides, because
test accuracy after two epochs depends most on how far the moving average lags (C24).

A rate *works* within five points of the best; the range of rates is all those around the best,
without a gap, and one that reaches an end of its grid is counted to there.

Pilot runs (seed 100, not used for the verdict): 25, which decided where the grids begin and end and
that training accuracy decides. What is left at fifty times the customary rate was added after them.
"""

from __future__ import annotations

import dataclasses
import math

from normkit.lab.claims import c03
from normkit.lab.claims.claim import Arms, Available, Preset
from normkit.lab.claims.measures import limits, rates
from normkit.lab.claims.measures.rates import ADADELTA, CUSTOMARY, GRIDS, RMSPROP, SGD, WIDTHS
from normkit.lab.claims.sources import BAYES_NOTES, IOFFE, VAN_LAARHOVEN
from normkit.lab.claims.study import (
    TEST,
    TRAIN,
    WITH,
    Endpoint,
    define,
)

USUAL, LARGER, UNBOUNDED, FAR = CUSTOMARY[SGD], 0.5, limits.GRID[-1], 50


def plan(preset: Preset, available: Available) -> Arms:
    """C3's runs with BN, and the same with other optimizers and rates; fewer seeds."""
    templates = {run.seed: run for arm, run in c03.PLAN(preset, available) if arm == WITH}
    seeds = sorted(templates)[: {"quick": 3, "full": 5, "paper": 10}.get(preset)]
    return [
        (arm, dataclasses.replace(templates[seed], optimizer=arm.lower(), lr=lr))
        for seed in seeds
        for arm, grid in GRIDS.items()
        for lr in grid
    ]


def removes(arm: str) -> Endpoint:
    """Ask whether an optimizer's range of rates is wider than SGD's."""
    return Endpoint(
        f"{arm}'s range: by how many decades of rates is it wider than SGD's?",
        WIDTHS[arm] - WIDTHS[SGD],
        matters=0.3,
        # Each of four ends is rounded to a step, alike for all seeds: a variance of step²/12.
        shared=rates.STEP / math.sqrt(3),
    )


def far(arm: str) -> Endpoint:
    """Compare an optimizer with SGD at many times the customary rates."""
    return Endpoint(
        f"At {FAR} times its customary rate, how much higher is training accuracy with {arm} than "
        "with SGD?",
        TRAIN.at(arm, lr=FAR * CUSTOMARY[arm]) - TRAIN.at(SGD, lr=FAR * USUAL),
        matters=5,
    )


CLAIM = define(
    key="C9",
    title="A larger learning rate works, an unbounded one does not, and adaptive methods help",
    topic="training",
    statement="With batch normalization a somewhat larger learning rate works, but not an "
    "arbitrarily large one. Adaptive methods, Adadelta and RMSProp, take the choice away.",
    sources=(
        BAYES_NOTES.says("as stated; no sweep and no figures are given"),
        IOFFE.says(
            "steps to 72.2 % and best accuracy: with BN 13.3 M, 72.7; at five times the learning "
            "rate 2.1 M, 73.0; at thirty times 2.7 M, 74.8",
            "§4.2",
        ),
    ),
    prediction="At 0.5 the network learns nearly as well as at 0.1 and at 20 not at all; Adadelta "
    "tolerates a wider range of rates than SGD; of RMSProp that is doubtful, for its steps are as "
    "long as its rate says.",
    plan=plan,
    decides={
        "larger": Endpoint(
            f"A somewhat larger rate works: how much higher is training accuracy at {LARGER} than "
            f"at {USUAL}?",
            TRAIN.at(SGD, lr=LARGER) - TRAIN.at(SGD, lr=USUAL),
            margin=5,
        ),
        "unbounded": Endpoint(
            f"An unbounded rate does not: how much lower is it at {UNBOUNDED:g} than at {LARGER}?",
            TRAIN.at(SGD, lr=LARGER) - TRAIN.at(SGD, lr=UNBOUNDED),
            matters=5,
        ),
        "adadelta": removes(ADADELTA),
        "rmsprop": removes(RMSPROP),
    },
    information={
        "test": Endpoint(
            f"How much higher is SGD's test accuracy at {LARGER} than at {USUAL}?",
            TEST.at(SGD, lr=LARGER) - TEST.at(SGD, lr=USUAL),
            matters=5,
        ),
        "far_adadelta": far(ADADELTA),
        "far_rmsprop": far(RMSPROP),
    },
    rule="95 % t intervals of the paired differences, never narrower than the grid can tell",
    sentence=f"With SGD, training accuracy at {LARGER} minus that at {USUAL} is {{larger}} points; "
    f"that at {LARGER} minus that at {UNBOUNDED:g} is {{unbounded}}. The range of rates that work "
    f"has so many decades: {{widths}}. Less SGD's that is {{adadelta}} ({ADADELTA}) and "
    f"{{rmsprop}} ({RMSPROP})",
    say={"widths": rates.widths},
    source_setup={
        "network": "not named",
        "data": "not named",
        "steps": "not named",
        "figures": "none: no sweep",
    },
    figures=f"training accuracy at {LARGER} minus that at {USUAL}: {{larger}} points; at {LARGER} "
    f"minus that at {UNBOUNDED:g}: {{unbounded}}; range of rates minus SGD's: {ADADELTA} "
    f"{{adadelta}}, {RMSPROP} {{rmsprop}} decades",
    at_scale=(
        IOFFE.agrees(
            "as to a larger rate: with BN five times the rate reaches 73.0 % and thirty times "
            "74.8 %, without dropout and with less weight decay, against 72.7 % at the usual rate "
            "and recipe; thirty times is slower at first than five",
            "Inception on ImageNet, §4.2",
        ),
        VAN_LAARHOVEN.contradicts(
            "as to adaptive methods: methods such as Adam remove the influence of normalization on "
            "the effective rate only in part",
        ),
    ),
    holds=f"From a rate of {USUAL} to {LARGER} training accuracy changes by {{larger}} points, and "
    f"{UNBOUNDED:g} costs {{unbounded}} against {LARGER}. After two epochs, the range of rates "
    "within five points of the best differs from SGD's by {adadelta} decades with Adadelta and "
    "{rmsprop} with RMSProp: a wider range is not the end of the choice.",
    practice="Search the rate with every optimizer, in factors of two or three around its "
    "customary one. Neither batch normalization nor an adaptive method makes the search needless.",
    charts=(
        rates.chart("rates", "Training accuracy by learning rate, with BN", "learning rate"),
        rates.chart(
            "factors",
            "How far from its customary rate each optimizer works",
            "learning rate over the customary one",
            relative=True,
        ),
    ),
    tables=(rates.summary_table, rates.rate_table),
    demo=False,
    differs="The source gives no figures. Adadelta and RMSProp scale each parameter's step, but "
    "how long a step is on the whole is still set by the rate; normalization already makes the "
    "gradient of a layer's weights smaller as they grow, with SGD too, so that SGD may have as "
    "wide a range to choose from.",
)
