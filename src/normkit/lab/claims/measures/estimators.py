"""Errors with statistics estimated in several ways, on the same weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from statistics import fmean

import numpy as np

from normkit.lab.by_image import Images, average, combine
from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study import (
    PERCENT,
    TEST,
    At,
    Curves,
    Measure,
    Series,
    error,
    last,
    mean_of,
    mean_of_epochs,
    published,
    while_training,
)
from normkit.lab.claims.study.measures import Curve
from normkit.lab.conditions import Condition
from normkit.lab.findings import Table
from normkit.lab.runs import Run

__all__ = [
    "CHARTS",
    "EXCESS",
    "MOVING",
    "POPULATION",
    "PUBLISHED",
    "each_epoch",
    "estimated",
    "estimators_table",
    "grid",
    "jumps",
    "most",
]

SAMPLES, BATCHES = (100, 300, 1000, 3000, 10_000), (2, 10, 100, 1000)
AT_SAMPLES, AT_BATCH = 1000, 100  # what the rest of the grid is measured at
# ResNet-50 on ImageNet, error, %: moving average, and by batch size of the estimator (±0.1).
PUBLISHED = {
    "SGD batch 32": (23.7, {2: 28.8, 10: 24.0, 100: 23.5}),
    "SGD batch 2": (35.5, {2: 34.4, 10: 32.3, 100: 32.0}),
}
WORDS = {"moving": "moving average", "population": "population statistics"}
MOVING = error(TEST, "error, moving average")
POPULATION = error(last("test_accuracy", "", under=while_training), "error, population statistics")


def each_epoch(at: At) -> tuple[Condition, ...]:
    """The estimator after each epoch."""
    images = 10_000 if at.preset == "paper" else 3_000
    return (("population", min(images, at.train), AT_BATCH),)


def grid(at: At) -> tuple[Condition, ...]:
    """Estimators after the last epoch: a cross through the grid; all of it in paper."""
    samples = sorted({min(n, at.train) for n in SAMPLES})
    return tuple(
        ("population", n, batch)
        for n, batch in itertools.product(samples, BATCHES)
        if n >= batch and (at.preset == "paper" or n == AT_SAMPLES or batch == AT_BATCH)
    )


def estimated(samples: int | Callable[[Run], int] = AT_SAMPLES, batch: int = AT_BATCH) -> Measure:
    """The error after the last epoch with statistics of so many images, in batches of so many."""

    def condition(run: Run) -> Condition:
        return ("population", samples(run) if callable(samples) else samples, batch)

    return error(last("test_accuracy", "", under=condition), "")


def most(run: Run) -> int:
    """The largest number of images that a run's statistics were estimated from."""
    return max(int(images) for _, images, _ in run.config.final_evaluations)


def jumps(measure: Measure, name: str, first: float = 1, until: float = math.inf) -> Measure:
    """Measure the mean change from one epoch to the next, from an epoch to another."""

    def changes(run: Run) -> list[tuple[float, float, float]]:
        known = [(x, y) for x, y in measure.curve(run) if y is not None and first <= x <= until]
        return [(x, later, b - a) for (x, a), (later, b) in itertools.pairwise(known)]

    def read(run: Run) -> float | None:
        sizes = [abs(change) for _, _, change in changes(run)]
        return fmean(sizes) if sizes else None

    # To first order: other images change the size of a jump, not its direction.
    def images(run: Run) -> Images:
        at = dict(measure.image_curve(run))
        ordered = [(x, later) if change < 0 else (later, x) for x, later, change in changes(run)]
        return average([combine(np.subtract, at.get(a), at.get(b)) for a, b in ordered])

    return Measure(name, read, measure.unit, images=images)


EXCESS = mean_of_epochs(MOVING.minus(POPULATION, ""), "excess of the moving average", first=2)
"""The error with the moving average minus that with population statistics, mean of the epochs from
the second on: after the first, an average of few steps still holds its start, and more so the
larger the batches."""


def _grid(run: Run) -> list[tuple[int, int]]:
    return [(int(images), int(batch)) for _, images, batch in run.config.final_evaluations]


def _by_samples(run: Run) -> list[tuple[float, float | None]]:
    return [(n, estimated(n).read(run)) for n, batch in _grid(run) if batch == AT_BATCH]


def _by_batch(run: Run) -> list[tuple[float, float | None]]:
    return [(b, estimated(batch=b).read(run)) for n, b in _grid(run) if n == AT_SAMPLES]


def _level(run: Run) -> list[tuple[float, float | None]]:
    return [(batch, MOVING.read(run)) for batch in (BATCHES[0], BATCHES[-1])]


def _series(**curves: Curve) -> Callable[[Evidence], list[Series]]:
    """Curves of each network, by the statistics that they are measured with."""
    return lambda evidence: [
        Series(arm, curve, f"{arm}, {WORDS[name]}")
        for arm in evidence.arms
        for name, curve in curves.items()
    ]


CHARTS = (
    Curves(
        "epochs",
        "Test error after each epoch",
        "epoch",
        "test error",
        PERCENT,
        series=_series(moving=MOVING.curve, population=POPULATION.curve),
    ),
    Curves(
        "samples",
        f"Test error by the number of images behind the statistics, in batches of {AT_BATCH}",
        "training images",
        "test error",
        PERCENT,
        series=_series(population=_by_samples),
        x_log=True,
    ),
    Curves(
        "batches",
        f"Test error by the batch size of the estimator, {AT_SAMPLES:,} images",
        "images in a batch of the estimator",
        "test error",
        PERCENT,
        series=_series(population=_by_batch, moving=_level),
        x_log=True,
        extra=[published("ResNet-50 on ImageNet, SGD batch 32", PUBLISHED["SGD batch 32"][1])],
    ),
)


def estimators_table(evidence: Evidence) -> Table:
    """Errors, ours and published, by the batch size of the estimator."""
    measures = (MOVING, *(estimated(batch=batch) for batch in BATCHES))
    rows: list[tuple[str | float | None, ...]] = [
        (arm, *(PERCENT.cell(mean_of(evidence.of(arm), measure)) for measure in measures))
        for arm in evidence.arms
    ]
    for label, (moving, by_batch) in PUBLISHED.items():
        rows.append((f"published, ImageNet, {label}", moving, *map(by_batch.get, BATCHES)))
    title = (
        "Test error, %, after the last epoch: the moving average, and statistics of "
        f"{AT_SAMPLES:,} images"
    )
    columns = ("network", "moving average", *(f"batches of {batch}" for batch in BATCHES))
    return Table("estimators", title, columns, tuple(rows))
