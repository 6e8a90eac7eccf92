"""C15: population statistics are better than a moving average: steadier, and cheap to get.

Each network is evaluated with the moving average that its layers keep and, the same weights, with
population statistics estimated in many ways: from 100 to 10,000 training images, in batches of 2
to 1,000. The learning rate is in proportion to the batch size, as in the source. Images that are
lit differently decide (C16 says why), the same at even light stands beside them. The jump after the
first epoch is that of a network that has just begun; what decides is read from the second on.

Pilot runs (seed 100, not used for the verdict): this network and one twice as wide, to see that
they learn and what they cost.
"""

from __future__ import annotations

from collections.abc import Sequence

from normkit.lab.claims.measures.estimators import (
    CHARTS,
    EXCESS,
    MOVING,
    POPULATION,
    PUBLISHED,
    each_epoch,
    estimated,
    estimators_table,
    grid,
    jumps,
    most,
)
from normkit.lab.claims.sources import RETHINKING_NOTES, WU_JOHNSON, figures
from normkit.lab.claims.study import (
    NARROW_RESNET,
    Endpoint,
    Measure,
    Plan,
    Quantity,
    Scale,
    Seeds,
    define,
    mean,
)

SMALL, LARGE = "SGD batch 64", "SGD batch 256"
EVEN = {SMALL: f"{SMALL}, even light", LARGE: f"{LARGE}, even light"}
SGD = {SMALL: {"batch_size": 64, "lr": 0.1}, LARGE: {"batch_size": 256, "lr": 0.4}}
JUMPS = jumps(MOVING, "jumps, moving average", first=2)
JUMPS_POPULATION = jumps(POPULATION, "jumps, population statistics", first=2)


def more(first: Measure, second: Measure, arms: Sequence[str] = (SMALL, LARGE)) -> Quantity:
    """Measure how much higher one error is than another of a run, mean of the two networks."""
    return mean(*(first.at(arm) - second.at(arm) for arm in arms))


CLAIM = define(
    key="C15",
    title="Population statistics are steadier than a moving average, and 1,000 images give them",
    topic="statistics",
    statement="Population statistics, computed for the weights as they are, evaluate more steadily "
    "than the moving average along training, which is worst at large batches. They should not be "
    "estimated in very small batches, where errors add up from layer to layer, and a thousand to "
    "ten thousand images are enough.",
    sources=(
        WU_JOHNSON.says(
            "; ".join(
                f"{network}: moving average {moving}, statistics estimated in batches of "
                f"{figures(by_batch)}: {figures(by_batch.values())}"
                for network, (moving, by_batch) in PUBLISHED.items()
            )
            + "; 10³ to 10⁴ images are enough (read off plots, ±0.1)",
            "§3, ResNet-50 on ImageNet, error, %",
        ),
        RETHINKING_NOTES.says("the same figures"),
    ),
    prediction="The error with the moving average jumps more from epoch to epoch and lies higher, "
    "more so with SGD batches of 256 than of 64; estimates in batches of 2 cost a point or more; "
    "from 1,000 images on, more images change next to nothing.",
    plan=Plan(
        scales={
            "quick": Scale(seeds=5, train=10_000, test=3_000, epochs=4),
            "full": Scale(seeds=6, train=10_000, test=3_000, epochs=6),
            "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=100),
        },
        arms={
            **{arm: SGD[arm] | {"data": "fashion-mnist-lit"} for arm in SGD},
            **{EVEN[arm]: SGD[arm] for arm in SGD},
        },
        seeds={arm: {"quick": 2, "full": 3} for arm in EVEN.values()},
        base={
            "norm": "batch",
            "momentum": 0.9,
            "evaluations": each_epoch,
            "final_evaluations": grid,
        },
        presets=NARROW_RESNET,
    ),
    decides={
        "steadier": Endpoint(
            "Steadier: on images lit differently, how much less does the test error jump from "
            "epoch to epoch, after the second?",
            JUMPS.at(LARGE) - JUMPS_POPULATION.at(LARGE),
            matters=0.5,
        ),
        "worst": Endpoint(
            "Worst at large batches: on images lit differently, how much more does the moving "
            "average lose at 256 than at 64, from the second epoch on?",
            EXCESS.at(LARGE) - EXCESS.at(SMALL),
            matters=0.5,
        ),
        "accumulate": Endpoint(
            "Small batches accumulate error: on images lit differently, how much higher is it with "
            "batches of 2 than of 100?",
            more(estimated(batch=2), estimated()),
            matters=0.5,
        ),
        "enough": Endpoint(
            "1,000 images are enough: on images lit differently, how much lower is the error with "
            "1,000 than with 10,000?",
            more(estimated(most), estimated()),
            margin=0.5,
        ),
    },
    information={
        "first": Endpoint(
            "How much less does it jump from the first epoch to the second?",
            jumps(MOVING, "", until=2).at(LARGE) - jumps(POPULATION, "", until=2).at(LARGE),
            matters=0.5,
        ),
        "accumulate_even": Endpoint(
            "At even light: how much higher is it with batches of 2 than of 100?",
            more(estimated(batch=2), estimated(), tuple(EVEN.values())),
            matters=0.5,
        ),
        "steadier_even": Endpoint(
            "At even light: how much less does it jump from epoch to epoch, after the second?",
            JUMPS.at(EVEN[LARGE]) - JUMPS_POPULATION.at(EVEN[LARGE]),
            matters=0.5,
        ),
    },
    sentence="Points of test error: the jump from epoch to epoch with the moving average minus "
    "that with population statistics {steadier}; what the moving average costs at an SGD batch of "
    "256 minus what it costs at 64 {worst}; estimates in batches of 2 minus those in batches of "
    "100 {accumulate}; statistics of 10,000 images minus those of 1,000 {enough}",
    source_setup={
        "network": "ResNet-50",
        "data": "ImageNet, 1.28 M photographs",
        "steps": "100 epochs",
        "figures": "SGD batch 32: moving average 23.7 % error, statistics from batches of 2, 10, "
        "100: 28.8, 24.0, 23.5",
    },
    figures="points of error: jumps, moving average minus population statistics {steadier}; "
    "batches of 2 minus batches of 100 {accumulate}; 10,000 images minus 1,000 {enough}",
    at_scale=(
        WU_JOHNSON.agrees(
            "statistics estimated in batches of 2 cost 5.3 points against batches of 100, and "
            "10³ to 10⁴ images are enough; at the end of training, with a rate near zero, the "
            "moving average of SGD batches of 32 is nearly as good, 23.7 % against 23.5",
            "ResNet-50 on ImageNet, §3",
        ),
    ),
    holds="At a constant, high rate the jumps with the moving average differ from those with "
    "population statistics by {steadier} points from the second epoch on, and by {first} before. "
    "Estimates in batches of 2 differ from those in batches of 100 by {accumulate} points where "
    "images are lit differently, and by {accumulate_even} where they are alike.",
    practice="Before you judge a network in the middle of training, estimate its statistics from a "
    "thousand images or more, in batches of a hundred: nk.recalibrate does it in seconds.",
    charts=CHARTS,
    tables=(estimators_table, Seeds((MOVING, POPULATION, JUMPS, JUMPS_POPULATION))),
    differs="Over few epochs the largest jump is that after the first, where the moving average "
    "has just begun; it is given for information, and those after the second epoch decide. The "
    "source trains "
    "ResNet-50 on ImageNet for a hundred epochs, where errors add up over many more layers. Quick "
    "and full have a narrow ResNet-18, few epochs and small images.",
)
