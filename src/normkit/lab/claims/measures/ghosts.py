"""ResNet in ghost batches of several sizes: runs and errors of C16 and C17.

The *normalization batch size*, the number of images that share a mean and a variance, is set apart
from the batch size of SGD by ghost batches. The source sweeps it from 2 to 1024; here SGD has
batches of 256, and the sizes go up to that. Training error is that of the batches as they were
learned from, except in the gap between training and test, for which both are evaluated alike after
training: a training error with noise falls as the batches get larger, whatever the network learns.
Test error is read with the statistics of batches of the normalization batch size, or with
population statistics under the final weights. In the frozen arm the last fifth of the epochs
trains with population statistics already, and the test uses them.

The arms that decide see each image lit differently, as photographs are: the mean of two images then
says little of the others, which is what the source is about. Images of Fashion-MNIST as they come
are so alike that two have nearly the mean of all; a few runs on them, *even light*, show it.

Pilot runs (seeds 100 and 101, not used for the verdicts): 20, to choose network, learning rate,
schedule and epochs. With LeNet-5 the statistics of two images were worse than the population's in
the test, the opposite of what the source saw; with ResNet-18 the two differed by less than a point,
as in the whole first edition, and a network twice as wide, larger images and 30 epochs changed
nothing. Of the lit images a trial of five other seeds gave, at sizes 2 and 256: training error 22.6
and 17.0, population statistics 30.3 and 21.2, batch statistics 24.9 and 21.5, frozen 25.6 and 21.5;
with contrast alone different, nothing. For the tour (seed 100): 2,560 lit images at rates of 0.05,
0.1, 0.2, 0.6; training error at 2 and 256 was 39 and 22, 32 and 23, 31 and 58, 90 and 86. At
full size (seeds 100, 101): at rates of 0.05, 0.1 and 0.2 population statistics gave 48.5 and 29.3,
44.2 and 24.6, 37.4 and 25.3 at a size of 2, and 20.2 to 25.6 at 256; 0.2 was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from normkit.lab.claims.claim import Arms, Available, Preset
from normkit.lab.claims.sources import WU_JOHNSON, figures
from normkit.lab.claims.study import (
    NARROW_RESNET,
    NUMBER,
    PERCENT,
    TEST,
    TRAIN,
    At,
    BySetting,
    Curves,
    Measure,
    Plan,
    Quantity,
    Quoted,
    Scale,
    Series,
    either,
    error,
    final,
    last,
    over,
    population,
    published,
    settings_of,
)
from normkit.lab.runs import Run

LIT = "fashion-mnist-lit"
BN, FROZEN = "BN", "BN, frozen at the end"
EVEN, EVEN_FROZEN = "BN, even light", "BN, frozen at the end, even light"
SMALL, MIDDLE, LARGE = 2, 16, 256
FEW, MANY = (2, 16, 256), (2, 4, 8, 16, 32, 64, 128, 256)
ENDS = (SMALL, LARGE)
SETUP = ("normalization", "ghost batches; their size is the normalization batch size")


def of_size(size: int) -> dict[str, Any]:
    """The fields of the runs at a normalization batch size."""
    return {"norm_options": (("ghost_size", size),)}


def _evaluations(at: At) -> Any:
    return (("batch", LARGE), *population(10_000, LARGE)(at))


def _on_training_images_too(at: At) -> Any:
    return (*_evaluations(at), ("train", min(10_000, at.train)))


TESTED: dict[str, Any] = {"final_evaluations": _evaluations}
FITTED: dict[str, Any] = {"final_evaluations": _on_training_images_too}
FIXED: dict[str, Any] = {"frozen_epochs": lambda at: at.scale.epochs // 5}


def _plan(arms: dict[str, dict[str, Any]], sizes: Sequence[int], *, quick: int, full: int) -> Plan:
    """Train these arms at these sizes, with so many seeds."""
    few = [of_size(size) for size in sizes]
    return Plan(
        scales={
            "quick": Scale(seeds=quick, train=5_120, test=4_096, epochs=10),
            "full": Scale(seeds=full, train=5_120, test=4_096, epochs=10),
            "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=100),
        },
        arms=arms,
        base={
            "norm": "ghost",
            "lr": 0.2,
            "momentum": 0.9,
            "schedule": "cosine",
            "batch_size": LARGE,
        },
        presets=NARROW_RESNET,
        settings={
            "tour": few,
            "quick": few,
            "full": few,
            "paper": [of_size(size) for size in MANY],
        },
    )


# A hundred steps: at a rate of 0.2 a normalization batch size of 256 has then learned little.
BRIEF = {**NARROW_RESNET["quick"], "lr": 0.1}
PLANS = (
    _plan({BN: FITTED | {"data": LIT}}, FEW, quick=4, full=8),
    _plan({FROZEN: FIXED | {"data": LIT}}, ENDS, quick=4, full=8),
    _plan({EVEN: TESTED}, ENDS, quick=2, full=5),
    _plan({EVEN_FROZEN: FIXED}, ENDS[:1], quick=0, full=5),
)


def plan(*arms: str, tour: Scale | None = None) -> Callable[[Preset, Available], Arms]:
    """Plan the runs of these arms; in the tour, if there is one, those of BN on lit images."""
    plans = PLANS if tour is None else (PLANS[0].touring(tour, BRIEF), *PLANS[1:])

    def runs(preset: Preset, available: Available) -> Arms:
        planned = (run for each in plans for run in each(preset, available))
        return [(arm, config) for arm, config in planned if arm in arms]

    return runs


def size_of(run: Run) -> int:
    """The run's normalization batch size."""
    return int(dict(run.config.norm_options)["ghost_size"] or 0)


SIZE = Measure("normalization batch size", size_of, NUMBER)
SAMPLED = last("test_accuracy", "", under=final("population"))
TRAINING = error(TRAIN, "training error")
GAP = error(TEST, "").minus(
    error(last("test_accuracy", "", under=final("train")), ""), "from training to test error"
)
"""Test error minus the error on training images, both with the final weights and moving average."""
BATCH = error(last("test_accuracy", "", under=final("batch")), "test error, batch statistics")
POPULATION = error(
    # What a frozen run was tested with are its population statistics.
    either(lambda run: TEST if run.config.frozen_epochs else SAMPLED, "", like=TEST),
    "test error, population statistics",
)
CURVES = {
    "training": (BN, TRAINING, ""),
    "test, batch statistics": (BN, BATCH, "batch statistics"),
    "test, population statistics": (BN, POPULATION, "population statistics"),
    "test, frozen at the end": (FROZEN, POPULATION, ""),
    "training, even light": (EVEN, TRAINING, ""),
    "test, batch statistics, even light": (EVEN, BATCH, ""),
    "test, population statistics, even light": (EVEN, POPULATION, ""),
}
PUBLISHED_SIZES = (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2)
PUBLISHED = {
    "training": (8.5, 8.4, 8.8, 9.1, 9.7, 10.7, 12.0, 13.6, 15.1, 16.5),
    "test, batch statistics": (24.8, 24.8, 24.7, 24.7, 24.7, 24.5, 24.7, 25.1, 25.5, 26.0),
    "test, population statistics": (23.7, 23.7, 23.6, 23.4, 23.2, 23.4, 23.5, 24.3, 26.4, 32.5),
    "test, frozen at the end": (24.5, 24.4, 24.4, 24.4, 24.2, 24.3, 23.9, 24.2, 24.3, 25.2),
}
SOURCE = WU_JOHNSON.says(
    f"error, % at normalization batch sizes {figures(PUBLISHED_SIZES)}: "
    + "; ".join(f"{name} {figures(errors)}" for name, errors in PUBLISHED.items()),
    "§4, ResNet-50 on ImageNet, 100 epochs, frozen for the last 20 (read off figures, ±0.1)",
)


SOURCE_SETUP = {
    "network": "ResNet-50",
    "data": "ImageNet, 1.28 M photographs",
    "steps": "100 epochs",
    "figures": "error at normalization batch sizes of 2 and 256: training 16.5, 8.8 %; population "
    "statistics 32.5, 23.6; batch statistics 26.0, 24.7; frozen at the end 25.2, 24.4",
}


def at(measure: Measure, size: int, arm: str = BN) -> Quantity:
    """A measure of an arm at a normalization batch size."""
    return measure.at(arm, **of_size(size))


def _published(name: str) -> dict[int, float]:
    return dict(zip(PUBLISHED_SIZES, PUBLISHED[name], strict=True)) if name in PUBLISHED else {}


def chart(key: str, title: str, *names: str) -> Curves:
    """Error over normalization batch size."""
    return Curves(
        key,
        title,
        "normalization batch size",
        "error",
        PERCENT,
        series=[
            Series(arm, over(size_of, measure), name, colour)
            for name, (arm, measure, colour) in CURVES.items()
            if name in names
        ],
        x_log=True,
    )


def source_chart(*names: str) -> Quoted:
    """The source's errors over normalization batch size."""
    return Quoted(
        "published",
        "The source's errors, ResNet-50 on ImageNet",
        "normalization batch size",
        "error",
        PERCENT,
        [published(name, _published(name), colour=CURVES[name][2] or name) for name in names],
        x_log=True,
    )


def table(*names: str) -> BySetting:
    """Error by normalization batch size: ours, and the published one at the same size."""
    return BySetting(
        "Error, %, by normalization batch size: mean over the seeds; published is ResNet-50 on "
        "ImageNet",
        "error",
        settings_of(size_of),
        of_size,
        [(name, *CURVES[name][:2], _published(name)) for name in names],
    )
