"""Number of seeds that would decide an open part: a range, for it rests on few seeds itself."""

from __future__ import annotations

import functools
import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from scipy import special

from normkit.lab.findings import TAIL, Comparison

__all__ = ["needed", "seeds_needed"]

POWER = 0.8
"""The probability that a study with the needed number of seeds is decided."""
RANGE = 0.8
"""The probability that the range holds that number."""
MOST_SEEDS = 1000
"""More than these are more than can be told."""

Array = npt.NDArray[Any]

_GRID = (np.arange(20) + 0.5) / 20
"""Equally probable places in a distribution."""


def seeds_needed(comparison: Comparison) -> tuple[int, int | None] | None:
    """Return the 80 % range of how many seeds would decide an open part in four studies of five.

    Decided is a part with any word but *open*. With mean δ and standard deviation σ of the
    differences known, the probability of that can be calculated. They are known as well as n seeds
    tell: (n − 1) s² / σ² has a chi-squared distribution, and the effect's distance from δ over its
    standard error a normal one (Fisher's fiducial distribution, the posterior under the prior
    1 / σ). Of a grid of equally probable σ and δ, the range leaves out the tenth that needs the
    fewest seeds and the tenth that needs the most.

    An effect right at the bound that separates two words (the smallest that matters, or the margin)
    is decided by no number of seeds. Where the 80 % interval of δ holds it, the range has no upper
    end.

    In 3,000 simulated studies of five seeds (δ from −0.4 to 1.4 σ, five choices of the bound) the
    range holds the number in 90 % of the open parts; in 76 to 100 % at each setting where most
    stay open, in 59 to 83 % where at most half do and those that do are the unlucky ones.

    Returns:
        The range's ends, more than there are seeds now; the second is None beyond 1,000. None
        where the first is too, or where the differences have no spread from which to tell.

    >>> from normkit.lab.verdicts import paired_test
    >>> comparison = paired_test("?", [3, -0.2, 2, 1, 0.5], unit="points")
    >>> comparison.word, seeds_needed(comparison)
    ('open', (6, 116))
    """
    count, shared = comparison.seeds, comparison.shared
    freedom = count - 1 if comparison.freedom is None else comparison.freedom
    error = (comparison.high - comparison.low) / (2 * float(special.stdtrit(freedom, 1 - TAIL)))
    # With no more degrees of freedom than the seeds give, the interval is of them alone.
    variance = count * max(0.0, error**2 - (shared**2 if freedom > count - 1 else 0.0))
    # Relative, for the interval's ends were rounded.
    if not math.isfinite(error) or variance <= 1e-9 * max(shared**2, 1e-300):
        return None
    sigma2, shift = np.meshgrid(
        (count - 1) * variance / special.chdtri(count - 1, _GRID), special.ndtri(_GRID)
    )
    mean = comparison.effect + shift * np.sqrt(sigma2 / count + shared**2)
    counts = np.sort(needed(mean.ravel(), sigma2.ravel(), comparison))
    tail = round(len(counts) * (1 - RANGE) / 2)
    low, high = counts[tail], counts[-1 - tail]
    bound = -comparison.margin if comparison.margin else comparison.smallest
    distance = abs(comparison.effect - bound) / error
    if distance < special.stdtrit(freedom, (1 + RANGE) / 2):
        high = math.inf
    if low > MOST_SEEDS:
        return None
    return int(low), int(high) if high <= MOST_SEEDS else None


@functools.cache
def _tables() -> tuple[Array, Array]:
    """Return by degrees of freedom (from 1) Student's quantile, and chi-squared's over freedom."""
    freedom = np.arange(1.0, MOST_SEEDS + 1)
    spreads = special.chdtri(freedom[:, None], _GRID) / freedom[:, None]
    return special.stdtrit(freedom, 1 - TAIL), spreads


def needed(mean: Array, variance: Array, comparison: Comparison) -> Array:
    """Return how many seeds decide in four studies of five, for these means and variances.

    The smallest number above that of the comparison, whose bounds count, by bisection; 1,001 where
    1,000 do not.
    """
    low = np.full(mean.shape, float(comparison.seeds))  # not enough, as far as is asked
    high = np.full(mean.shape, MOST_SEEDS + 1.0)  # taken for enough
    while (apart := high - low > 1).any():
        middle = np.where(apart, np.floor((low + high) / 2), high)
        enough = _decided(middle, mean, variance, comparison) >= POWER
        high, low = np.where(enough, middle, high), np.where(enough | ~apart, low, middle)
    return cast("Array", high)


def _decided(seeds: Array, mean: Array, variance: Array, comparison: Comparison) -> Array:
    """Return the probability that a study with so many seeds is decided, for each mean."""
    shared, smallest, margin = comparison.shared, comparison.smallest, comparison.margin
    students, spreads = _tables()
    sampling = variance / seeds
    freedom = (seeds - 1) * (1 + shared**2 / sampling) ** 2  # Welch and Satterthwaite's
    # The quantile is nearly straight in the inverse of the degrees of freedom.
    inverse = 1 / np.arange(1, len(students) + 1)
    quantile = np.interp(-1 / freedom, -inverse, students)[:, None]
    error = np.sqrt(sampling + shared**2)[:, None]
    # The study's own estimate of the variance.
    estimate = sampling[:, None] * spreads[seeds.astype(int) - 2]
    alone = students[seeds.astype(int) - 2][:, None] * np.sqrt(estimate)
    half = np.maximum(alone, quantile * np.sqrt(estimate + shared**2))
    mean = mean[:, None]

    def below(bound: Array | float) -> Array:
        return cast("Array", special.ndtr((bound - mean) / error))

    if margin:
        return cast("Array", (below(-margin - half) + 1 - below(half - margin)).mean(axis=1))
    above = 1 - below(np.maximum(half, smallest))
    within = np.maximum(below(smallest - half) - below(half - smallest), 0)
    under = below(-half)
    # What is below zero and within ±smallest is one word, and counts once.
    both = np.maximum(under - below(half - smallest), 0)
    return cast("Array", (above + within + under - both).mean(axis=1))
