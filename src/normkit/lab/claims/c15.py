"""C15: population statistics are better than a moving average: steadier, and cheap to get.

Each network is evaluated with the moving average that its layers keep and, the same weights, with
population statistics estimated in many ways: from 100 to 10,000 training images, in batches of 2
to 1,000. The learning rate is in proportion to the batch size, as in the source.

Pilot runs (seed 100, not used for the verdict): this network and one twice as wide, to see that
they learn and what they cost.
"""

from __future__ import annotations

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
JUMPS = jumps(MOVING, "jumps, moving average")
JUMPS_POPULATION = jumps(POPULATION, "jumps, population statistics")


def more(first: Measure, second: Measure) -> Quantity:
    """Measure how much higher one error is than another of a run, mean of the two networks."""
    return mean(*(first.at(arm) - second.at(arm) for arm in (SMALL, LARGE)))


CLAIM = define(
    key="C15",
    title="Population statistics are steadier than a moving average, and 1,000 images give them",
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
            "full": Scale(seeds=6, train=10_000, test=3_000, epochs=4),
            "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=100),
        },
        arms={
            SMALL: {"batch_size": 64, "lr": 0.1},
            LARGE: {"batch_size": 256, "lr": 0.4},
        },
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
            "Steadier: how much less does the test error jump from epoch to epoch?",
            JUMPS.at(LARGE) - JUMPS_POPULATION.at(LARGE),
            matters=0.5,
        ),
        "worst": Endpoint(
            "Worst at large batches: how much more does the moving average lose at 256 than at 64?",
            EXCESS.at(LARGE) - EXCESS.at(SMALL),
            matters=0.5,
        ),
        "accumulate": Endpoint(
            "Small batches accumulate error: how much higher is it with batches of 2 than of 100?",
            more(estimated(batch=2), estimated()),
            matters=0.5,
        ),
        "enough": Endpoint(
            "1,000 images are enough: how much lower is the error with 1,000 than with 10,000?",
            more(estimated(most), estimated()),
            margin=1,
        ),
    },
    information={
        "later": Endpoint(
            "How much less does it jump after the second epoch?",
            jumps(MOVING, "", first=2).at(LARGE) - jumps(POPULATION, "", first=2).at(LARGE),
            matters=0.5,
        ),
    },
    sentence="With population statistics the test error changes less from epoch to epoch, by "
    "{steadier} points; the moving average costs {worst} points more at the larger SGD batch; "
    "estimates in batches of 2 cost {accumulate} points; the error with 1,000 images is {enough} "
    "points below that with 10,000",
    charts=CHARTS,
    tables=(estimators_table, Seeds((MOVING, POPULATION, JUMPS, JUMPS_POPULATION))),
    differs="Over few epochs the jumps are mostly how far the moving average lags after the "
    "first one; those after the second epoch are given for information. The source trains "
    "ResNet-50 on ImageNet for a hundred epochs, where errors add up over many more layers. Quick "
    "and full have a narrow ResNet-18, few epochs and small images, so that each of the four "
    "effects may be smaller than its smallest that matters.",
)
