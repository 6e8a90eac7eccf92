"""C15: population statistics are the better memory: steadier, and cheap to get.

ResNet-18 a sixteenth as wide as the original (20 normalization layers, one after the other, so that
errors can add up), Fashion-MNIST at 16×16 pixels, SGD with momentum 0.9 in batches of 64 at 0.1
and of 256 at 0.4, the rate in proportion as the source scales it. Each network is evaluated with
the moving average that its layers keep and, the same weights, with population statistics estimated
in many ways: from 100 to 10,000 training images, in batches of 2 to 1000.

The claim says four things, and all must hold for *supported*. Endpoints, fixed before any run that
counts; errors are shares of the test images:

* steadier: how far the error jumps from one epoch to the next, on average, with the moving average
  less with population statistics, batches of 256; the smallest that would matter is 0.005;
* worst at large batches: the error of the moving average less that of population statistics,
  averaged over the epochs, at batches of 256 less the same at 64, seed by seed; 0.005;
* small batches accumulate error: with 1,000 images after the last epoch, the error of statistics
  estimated in batches of 2 less that in batches of 100, averaged over the two networks of a seed;
  0.005;
* 1,000 images are enough: one point (0.01) less what 10,000 images (all, if there are fewer) would
  gain over 1,000, in batches of 100, averaged likewise. Above zero, surely less than a point is
  lost.

One seed that is none of the claim's (100) was trained before, this network and one twice as wide,
to see that they learn and what they cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset, Scale
from normkit.lab.claims.estimators import (
    AT_BATCH,
    AT_SAMPLES,
    along,
    charts,
    errors,
    excess,
    grid,
    jumps,
    last,
    last_error,
    most,
    published_table,
)
from normkit.lab.claims.parts import BN, differences, figures, narrow_resnet, seed_table
from normkit.lab.config import RunConfig
from normkit.lab.findings import Reference
from normkit.lab.runs import Run
from normkit.lab.verdicts import paired_test

SMALL = "SGD batch 64"
LARGE = "SGD batch 256"
NETWORKS = {SMALL: (64, 0.1), LARGE: (256, 0.4)}
MATTERS = 0.005
ENOUGH = 0.01

SCALES: dict[Preset, Scale] = {
    "quick": Scale(seeds=5, train=10_000, test=3_000, epochs=4),
    "full": Scale(seeds=6, train=10_000, test=3_000, epochs=4),
    "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=100),
}
ALONG: dict[Preset, int] = {"quick": 3000, "full": 3000, "paper": 10_000}
"""Images for the statistics after each epoch."""


def plan(preset: Preset, available: Available) -> Arms:
    """The narrow ResNet-18 at both batch sizes, seed by seed."""
    scale = SCALES[preset]
    images: dict[str, Any] = available.at_most(scale.train, scale.test)
    along = ("population", min(ALONG[preset], images["train_images"]), AT_BATCH)
    return [
        (
            arm,
            RunConfig(
                **narrow_resnet(preset),
                norm=BN,
                lr=lr,
                momentum=0.9,
                batch_size=batch,
                epochs=scale.epochs,
                seed=seed,
                evaluations=(along,),
                final_evaluations=grid(preset, images["train_images"]),
                **images,
            ),
        )
        for seed in range(scale.seeds)
        for arm, (batch, lr) in NETWORKS.items()
    ]


def judge(evidence: Evidence) -> Judgement:
    """Compare the estimators on the same weights, and the batch sizes seed by seed."""
    large = [(run, run) for run in evidence.of(LARGE)]
    pairs = evidence.pairs(LARGE, SMALL)
    steadier = paired_test(
        "Steadier (decides): how much less does the test error jump from epoch to epoch?",
        differences(large, lambda r: jumps(errors(r)), lambda r: jumps(errors(r, along(r)))),
        unit="test error",
        smallest=MATTERS,
    )
    worst = paired_test(
        "Worst at large batches (decides): how much more does the moving average lose at 256?",
        differences(pairs, excess),
        unit="test error",
        smallest=MATTERS,
    )
    accumulate = paired_test(
        "Small batches accumulate error (decides): how much worse are estimates in batches of 2?",
        _both(pairs, lambda r: _minus(last_error(r, AT_SAMPLES, 2), _standard(r))),
        unit="test error",
        smallest=MATTERS,
    )
    enough = paired_test(
        "1,000 images are enough (decides): by how much is what more would gain below a point?",
        _both(pairs, lambda r: _minus(ENOUGH, _minus(_standard(r), _thorough(r)))),
        unit="test error",
    )
    later = paired_test(
        "For information: how much less does it jump after the second epoch?",
        differences(
            large, lambda r: jumps(errors(r)[1:]), lambda r: jumps(errors(r, along(r))[1:])
        ),
        unit="test error",
        smallest=MATTERS,
    )
    comparisons = (steadier, worst, accumulate, enough)
    images = max(map(most, evidence.runs), default=0)
    words = (
        f"jumps less by {figures(steadier, scale=100, digits=1)} points from epoch to epoch",
        f"the moving average loses {figures(worst, scale=100, digits=1)} points more at the larger "
        "SGD batch",
        f"estimates in batches of 2 lose {figures(accumulate, scale=100, digits=1)} points",
        f"what {images:,} images gain over 1,000 is below a point by "
        f"{figures(enough, scale=100, digits=1)}",
    )
    return Judgement(
        sentence=(
            f"With population statistics the test error {words[0]}; {words[1]}; {words[2]}; "
            f"{words[3]} ({evidence.coverage(len(pairs))}, 95 % intervals)."
        ),
        decides=comparisons,
        information=[later],
        charts=charts(evidence),
        tables=(
            published_table(evidence),
            seed_table(
                evidence,
                (
                    ("error, moving average", lambda r: last(errors(r))),
                    ("error, population", lambda r: last(errors(r, along(r)))),
                    ("jumps, moving average", lambda r: jumps(errors(r))),
                    ("jumps, population", lambda r: jumps(errors(r, along(r)))),
                ),
            ),
        ),
    )


def _standard(run: Run) -> float | None:
    return last_error(run, AT_SAMPLES, AT_BATCH)


def _thorough(run: Run) -> float | None:
    return last_error(run, most(run), AT_BATCH)


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _both(pairs: Sequence[tuple[Run, Run]], value: Any) -> list[float]:
    """The mean of the two networks of each seed."""
    found = [[value(run) for run in pair] for pair in pairs]
    return [fmean(values) for values in found if None not in values]


CLAIM = Claim(
    key="C15",
    title="Population statistics are steadier than a moving average, and 1,000 images give them",
    statement=(
        "Statistics of the population, computed for the weights as they are, evaluate more "
        "steadily than the moving average along training, which is worst at large batches. They "
        "should not be estimated in very small batches, where errors add up from layer to layer, "
        "and a thousand to ten thousand images are enough."
    ),
    sources=(
        Reference(
            'Wu & Johnson 2021, Rethinking "Batch" in BatchNorm, §3, ResNet-50 on ImageNet',
            "error at batch size 32: moving average 23.7 %, population statistics estimated in "
            "batches of 2, 10, 100 and more 28.8, 24.0, 23.5 %; at batch size 2: 35.5 %, and "
            "34.4, 32.3, 32.0 %; 10³ to 10⁴ images are enough (figures read off plots, ±0.1)",
            "https://arxiv.org/abs/2105.07576",
        ),
        Reference('Notes on Rethinking "Batch" in BatchNorm (article)', "the same figures"),
    ),
    prediction=(
        "The error with the moving average jumps more from epoch to epoch and lies higher, more so "
        "with SGD batches of 256 than of 64; estimates in batches of 2 cost a point or more; from "
        "1,000 images on, more images change next to nothing."
    ),
    decision=(
        "All four, of test error: jumps from epoch to epoch at batch 256 (matters from 0.005); the "
        "moving average's excess at 256 less at 64 (0.005); estimates in batches of 2 less in "
        "batches of 100, 1,000 images (0.005); 10,000 images gain less than 0.01 over 1,000. 95 % "
        "t interval over the seeds."
    ),
    plan=plan,
    judge=judge,
    differs=(
        "Over few epochs most of what counts as a jump is how far the moving average lags after "
        "the first one; what is left from the second on stands beside it. "
        "The source looked at ResNet-50 on ImageNet, where the weights move for a hundred epochs "
        "and many more layers pass errors on. Quick and full have a narrow ResNet-18, few epochs "
        "and small images, so that each of the four effects may be smaller than its smallest that "
        "matters."
    ),
)
