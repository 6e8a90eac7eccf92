"""Measures: one number of a run, and its curve along training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from normkit.lab.by_image import Images, combine, values_by_image
from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study.quantities import Quantity
from normkit.lab.claims.study.units import NATS, PERCENT, Unit
from normkit.lab.conditions import Condition, named
from normkit.lab.runs import Run

__all__ = [
    "CHANCE_LOSS",
    "GUESSING",
    "TEST",
    "TEST_LOSS",
    "TRAIN",
    "TRAIN_LOSS",
    "Curve",
    "Measure",
    "Under",
    "final",
    "last",
    "learned",
    "over",
    "steps",
    "while_training",
]

CHANCE_LOSS = math.log(10)
"""The cross-entropy of guessing among ten classes, in nats."""
GUESSING = 0.1
"""The accuracy of guessing among ten classes."""

Points = Sequence[tuple[float, float | None]]
Curve = Callable[[Run], Points]
"""The points (x, value) that one run adds to a curve."""

Under = Condition | Callable[[Run], Condition | None] | None
"""A condition of evaluation, or the function that finds a run's own."""


def _none(run: Run) -> Points:
    return ()


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number of a run, and the same number after each epoch where there is one.

    ``images`` is the number test image by test image, with the number itself as their mean, and
    ``image_curve`` the same after each epoch; None where that is unknown (a loss, a measure that is
    no mean over images, an older normkit's run), and then an interval does not cover the choice of
    the test images.

    ``minus`` is the difference of two measures of one run; ``at`` reads a measure by seed:

    >>> gain = TEST.at("with BN") - TEST.at("without BN")
    >>> gap = TRAIN.minus(TEST, "training less test accuracy")
    """

    name: str
    read: Callable[[Run], float | None]
    unit: Unit = PERCENT
    curve: Curve = _none
    images: Callable[[Run], Images] = lambda run: None
    image_curve: Callable[[Run], Sequence[tuple[float, Images]]] = lambda run: ()

    def at(self, arm: str, **where: Any) -> Quantity:
        """Read the measure of an arm by seed, of the runs with these values in their config."""

        def by_seed(evidence: Evidence) -> dict[int, float]:
            read = {run.config.seed: self.read(run) for run in evidence.of(arm, **where)}
            return {seed: value for seed, value in read.items() if value is not None}

        def images(evidence: Evidence) -> dict[int, Images]:
            return {run.config.seed: self.images(run) for run in evidence.of(arm, **where)}

        return Quantity(by_seed, self.unit, images)

    def minus(self, other: Measure, name: str) -> Measure:
        """Subtract another measure of the same run, in the unit of differences."""

        def curve(run: Run) -> Points:
            second = dict(other.curve(run))
            return [(x, _less(y, second[x])) for x, y in self.curve(run) if x in second]

        def images(run: Run) -> Images:
            return combine(np.subtract, self.images(run), other.images(run))

        def image_curve(run: Run) -> list[tuple[float, Images]]:
            second = dict(other.image_curve(run))
            return [
                (x, combine(np.subtract, each, second[x]))
                for x, each in self.image_curve(run)
                if x in second
            ]

        def read(run: Run) -> float | None:
            return _less(self.read(run), other.read(run))

        unit = self.unit.of_difference
        return Measure(name, read, unit, curve, images, image_curve)


def _less(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def last(metric: str, name: str, unit: Unit = PERCENT, under: Under = None) -> Measure:
    """Measure a metric after the last epoch, under a condition if one is named."""

    def key(run: Run) -> str | None:
        condition = under(run) if callable(under) else under
        if condition is None:
            return None if callable(under) else metric
        return named(metric, condition)

    def read(run: Run) -> float | None:
        metric = key(run)
        return run.last(metric) if metric else None

    def curve(run: Run) -> Points:
        metric = key(run)
        points = run.metrics[metric] if metric in run.metrics and metric else ()
        return [(epoch + 1, value) for _, epoch, value in points]

    def image_curve(run: Run) -> list[tuple[float, Images]]:
        metric = key(run) or ""
        return [
            (epoch + 1, values_by_image(run, metric, step, value))
            for step, epoch, value in run.metrics.get(metric, ())
        ]

    def images(run: Run) -> Images:
        by_epoch = image_curve(run)
        return by_epoch[-1][1] if by_epoch else None

    return Measure(name, read, unit, curve, images, image_curve)


def while_training(run: Run) -> Condition | None:
    """Return the first condition that a run was evaluated under after each epoch."""
    return run.config.evaluations[0] if run.config.evaluations else None


def final(kind: str) -> Callable[[Run], Condition | None]:
    """Find the condition of this kind that a run was evaluated under after the last epoch."""
    return lambda run: next((c for c in run.config.final_evaluations if c[0] == kind), None)


def steps(metric: str) -> Curve:
    """Return the curve of a metric along the steps of training."""
    return lambda run: [(step, value) for step, _, value in run.metrics.get(metric, ())]


def over(setting: Callable[[Run], float], measure: Measure) -> Curve:
    """Return the curve of a measure over a setting that runs of one arm differ in."""
    return lambda run: [(setting(run), measure.read(run))]


def learned(arm: str) -> Callable[[Evidence], bool]:
    """Require that more than half of an arm's runs learned something.

    An arm at chance level everywhere trivially loses nothing and has no gap, so a question about
    that stays open.
    """

    def holds(evidence: Evidence) -> bool:
        runs = evidence.of(arm)
        return 2 * sum(run.status != "diverged" for run in runs) > len(runs)

    return holds


def _or_chance(metric: str, name: str, unit: Unit, chance: float) -> Measure:
    """Measure a training metric of the last epoch; chance level where the loss was not finite."""
    plain = last(metric, name, unit)

    def read(run: Run) -> float | None:
        if metric not in run.metrics:
            return None
        value = plain.read(run)
        return chance if value is None else value

    def curve(run: Run) -> Points:
        return [(x, chance if value is None else value) for x, value in plain.curve(run)]

    # No test image has a part in it.
    def images(run: Run) -> Images:
        value = read(run)
        return None if value is None else np.array([value])

    def image_curve(run: Run) -> list[tuple[float, Images]]:
        return [(x, None if y is None else np.array([y])) for x, y in curve(run)]

    return Measure(name, read, unit, curve, images, image_curve)


TEST = last("test_accuracy", "last test accuracy")
TEST_LOSS = last("test_loss", "last test loss", NATS)
TRAIN = _or_chance("epoch_train_accuracy", "last training accuracy", PERCENT, GUESSING)
TRAIN_LOSS = _or_chance("epoch_train_loss", "last training loss", NATS, CHANCE_LOSS)
