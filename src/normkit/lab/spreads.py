"""Standard deviations over the seeds, and their ratios: on the log scale, by the jackknife."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from normkit.lab.verdicts import interval

__all__ = ["deviation_interval", "spread_ratios"]

Sample = npt.NDArray[Any]


def deviation_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the standard deviation of at least three values with its 95 % interval.

    Student's interval of its logarithm, by the jackknife as in :func:`spread_ratios`, so that it
    never reaches zero.

    >>> deviation, low, high = deviation_interval([1.0, 2.0, 4.0, 7.0, 11.0])
    >>> print(f"{deviation:.1f} [{low:.1f}, {high:.1f}]")
    4.1 [1.3, 12.7]
    """
    sample = np.asarray(values, dtype=np.float64)

    def logarithm(part: Sample) -> float:
        return 0.5 * math.log(max(float(part.var(ddof=1)), 1e-300))

    middle, low, high = interval(_pseudo_values(sample, logarithm))
    whole = math.exp(logarithm(sample))
    return whole, whole * math.exp(low - middle), whole * math.exp(high - middle)


def spread_ratios(
    first: Sequence[float], second: Sequence[float], *, resolution: float = 0.0
) -> list[float]:
    r"""Compare two spreads in halvings from the first sample to the second, pair by pair.

    The binary logarithm of the ratio of the two standard deviations, taken apart into the
    jackknife's pseudo-values (Miller 1974, Biometrika 61): with :math:`\theta` from all n pairs and
    :math:`\theta_{-i}` without the i-th, :math:`n \theta - (n - 1) \theta_{-i}`. They average to
    the estimate, nearly without its bias, and Student's interval holds for them as for
    differences. 1 is half the spread, 0 the same.

    Why the jackknife: test accuracies of a network in trouble have a long tail to the left. For
    ten pairs of equal spread with a gamma-shaped tail, the exact test for normal samples (Pitman
    and Morgan 1939) finds less spread in up to 5.5 % where it promises 2.5 %, the jackknife in
    2.1 to 2.3 %; with normal samples the two find it in 2.2 to 2.5 % and 2.4 to 3.2 %, percentiles
    of a bootstrap in 4.5 to 5.7 %.

    Args:
        first: of each pair, the member that is to spread more.
        second: the other, in the same order.
        resolution: the step of the scale on which both were read; a variance is never taken below
            the resolution²/12 that rounding alone gives.

    Returns:
        As many values as there are pairs; none for fewer than three pairs, where one left out
        leaves no spread.

    >>> values = spread_ratios([0.0, 4.0, 8.0, 12.0], [0.0, 1.0, 2.0, 3.0])
    >>> round(sum(values) / 4, 6)
    2.0
    """
    pairs = np.asarray([first, second], dtype=np.float64)

    def halvings(sample: Sample) -> float:
        one, other = np.maximum(sample.var(axis=1, ddof=1), max(resolution, 1e-12) ** 2 / 12)
        return float(np.log2(one / other)) / 2

    return _pseudo_values(pairs, halvings) if pairs.shape[1] > 2 else []


def _pseudo_values(sample: Sample, of: Callable[[Sample], float]) -> list[float]:
    """Return the jackknife's pseudo-values of a statistic; seeds lie along the last axis."""
    count = sample.shape[-1]
    whole = of(sample)
    left_out = [of(np.delete(sample, index, axis=-1)) for index in range(count)]
    return [count * whole - (count - 1) * each for each in left_out]
