"""Measures made of others: errors, averages along training, one of several."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from normkit.lab.by_image import Images, average
from normkit.lab.claims.study.measures import Measure, Points
from normkit.lab.runs import Run

__all__ = ["either", "error", "first", "mean_of_epochs", "quarter"]


def error(measure: Measure, name: str) -> Measure:
    """Return the error that goes with an accuracy."""
    one = np.ones(1)
    whole = Measure(
        "",
        lambda run: 1.0,
        measure.unit,
        lambda run: [(x, 1.0) for x, _ in measure.curve(run)],
        lambda run: one,
        lambda run: [(x, one) for x, _ in measure.image_curve(run)],
    )
    return dataclasses.replace(whole.minus(measure, name), unit=measure.unit)


def mean_of_epochs(measure: Measure, name: str, first: int = 1) -> Measure:
    """Average a measure over all epochs that have it, from one on: the area under its curve."""

    def part(run: Run) -> dict[float, float]:
        return {x: y for x, y in measure.curve(run) if y is not None and x >= first}

    def read(run: Run) -> float | None:
        values = part(run).values()
        return fmean(values) if values else None

    def images(run: Run) -> Images:
        return _mean_by_image(measure, run, list(part(run)))

    return Measure(name, read, measure.unit, measure.curve, images, measure.image_curve)


def _mean_by_image(measure: Measure, run: Run, places: Sequence[float]) -> Images:
    """Average a measure over some of its curve's places, image by image."""
    known = dict(measure.image_curve(run))
    return average([known.get(x) for x in places])


def quarter(measure: Measure, name: str, *, late: bool = True) -> Measure:
    """Average a measure over the last quarter of the epochs, or the first; None with gaps."""

    def part(run: Run) -> Points:
        count = max(1, run.config.epochs // 4)
        within = (run.config.epochs - count, math.inf) if late else (0, count)
        return [(x, y) for x, y in measure.curve(run) if within[0] < x <= within[1]]

    def read(run: Run) -> float | None:
        values = [value for _, value in part(run)]
        there = [value for value in values if value is not None]
        return fmean(there) if there and len(there) == len(values) else None

    def images(run: Run) -> Images:
        return _mean_by_image(measure, run, [x for x, _ in part(run)])

    return Measure(name, read, measure.unit, measure.curve, images, measure.image_curve)


def first(measure: Measure, name: str) -> Measure:
    """Take a measure after the first epoch that has it."""

    def read(run: Run) -> float | None:
        return next((value for _, value in measure.curve(run)), None)

    def images(run: Run) -> Images:
        return next((values for _, values in measure.image_curve(run)), None)

    return Measure(name, read, measure.unit, images=images)


def either(choose: Callable[[Run], Measure], name: str, like: Measure) -> Measure:
    """Take for each run the measure chosen for it, in the unit of one of them."""
    return Measure(
        name,
        lambda run: choose(run).read(run),
        like.unit,
        lambda run: choose(run).curve(run),
        lambda run: choose(run).images(run),
        lambda run: choose(run).image_curve(run),
    )
