"""Quantities: one number of each seed, and their differences, on which claims are decided."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean

import numpy as np

from normkit.lab.by_image import Images, average, combine
from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study.units import Unit
from normkit.lab.crossed import ImageError, image_error

__all__ = ["Quantity", "mean"]


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number of each seed, in stored units; the difference of two has the seeds of both.

    A number that is not finite stands for a seed that was seen and tells nothing. ``images`` has
    each seed's number test image by test image, where that is known.

    >>> ones = Quantity(lambda evidence: {0: 0.25, 1: 0.5}, Unit(""))
    >>> twos = Quantity(lambda evidence: {1: 0.25, 2: 0.5}, Unit(""))
    >>> (ones - twos).by_seed(Evidence("quick", ()))
    {1: 0.25}
    """

    by_seed: Callable[[Evidence], Mapping[int, float]]
    unit: Unit
    images: Callable[[Evidence], Mapping[int, Images]] = lambda evidence: {}

    def __sub__(self, other: Quantity) -> Quantity:
        def by_seed(evidence: Evidence) -> Mapping[int, float]:
            second = other.by_seed(evidence)
            first = self.by_seed(evidence)
            return {seed: value - second[seed] for seed, value in first.items() if seed in second}

        def images(evidence: Evidence) -> Mapping[int, Images]:
            return _by_seed(partial(combine, np.subtract), self, other, evidence=evidence)

        return Quantity(by_seed, self.unit.of_difference, images)

    def __neg__(self) -> Quantity:
        return Quantity(
            lambda e: {seed: -value for seed, value in self.by_seed(e).items()},
            self.unit.of_difference,
            lambda e: _by_seed(partial(combine, np.negative), self, evidence=e),
        )

    def shown(self, evidence: Evidence) -> list[float]:
        """Return the finite values in the unit that is printed, by seed."""
        values = sorted(self.by_seed(evidence).items())
        return [self.unit.scale * value for _, value in values if math.isfinite(value)]

    def image_error(self, evidence: Evidence) -> ImageError:
        """Return what the choice of the test images adds to the error of the mean, as printed."""
        values, by_image = self.by_seed(evidence), self.images(evidence)
        error = image_error([by_image.get(s) for s, v in values.items() if math.isfinite(v)])
        return error._replace(deviation=self.unit.scale * error.deviation)


def _by_seed(
    function: Callable[..., Images], *quantities: Quantity, evidence: Evidence
) -> dict[int, Images]:
    """Apply a linear function to the quantities image by image, for the seeds that have all."""
    read = [quantity.images(evidence) for quantity in quantities]
    return {
        seed: function(*(each[seed] for each in read))
        for seed in read[0]
        if all(seed in each for each in read)
    }


def mean(*quantities: Quantity) -> Quantity:
    """Return the mean of several quantities, of the seeds that have them all."""

    def by_seed(evidence: Evidence) -> Mapping[int, float]:
        read = [quantity.by_seed(evidence) for quantity in quantities]
        return {
            seed: fmean(each[seed] for each in read)
            for seed in read[0]
            if all(seed in each for each in read)
        }

    def images(evidence: Evidence) -> Mapping[int, Images]:
        return _by_seed(lambda *each: average(each), *quantities, evidence=evidence)

    return Quantity(by_seed, quantities[0].unit, images)
