"""Ratios of spreads over the seeds, as a quantity of each seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study import HALVINGS, Measure, Quantity, values_of
from normkit.lab.runs import Run
from normkit.lab.spreads import spread_ratios

__all__ = ["after", "deviation", "halved", "one_image"]


def halved(
    pairs: Sequence[tuple[Quantity, Quantity]], resolution: Callable[[Evidence], float]
) -> Quantity:
    """The binary logarithm of how much more the first of each pair spreads than the second.

    The jackknife's pseudo-values (:func:`normkit.lab.spreads.spread_ratios`), averaged over the
    pairs, of the seeds that have all of them; no numbers of fewer than three. ``resolution`` is
    the step of the scale on which both were read.
    """

    def by_seed(evidence: Evidence) -> Mapping[int, float]:
        read = [[each.by_seed(evidence) for each in pair] for pair in pairs]
        common = set.intersection(*(set(each) for pair in read for each in pair))
        seeds = sorted(common)
        step = resolution(evidence)
        ratios = [
            spread_ratios([one[s] for s in seeds], [other[s] for s in seeds], resolution=step)
            for one, other in read
        ]
        values = [fmean(each) for each in zip(*ratios, strict=True)]
        return dict(zip(seeds, values or [math.nan] * len(seeds), strict=True))

    return Quantity(by_seed, HALVINGS)


def after(measure: Measure, epoch: int) -> Measure:
    """A measure after an epoch, counted from 1."""
    return Measure(f"epoch {epoch}", lambda run: dict(measure.curve(run)).get(epoch), measure.unit)


def one_image(arm: str) -> Callable[[Evidence], float]:
    """The step on which an accuracy is read: one of an arm's test images."""

    def step(evidence: Evidence) -> float:
        configs = [each.run.config for each in evidence.planned if each.arm == arm]
        return 1 / configs[0].test_images if configs else 0.0

    return step


def deviation(runs: Sequence[Run], measure: Measure) -> float | None:
    """The standard deviation of a measure over the runs that have it."""
    values = values_of(runs, measure)
    return stdev(values) if len(values) > 1 else None
