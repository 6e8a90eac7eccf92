"""From paired differences to a verdict: the one place where a claim is decided.

Each seed gives one difference, arm against arm, positive where it favours the claim. The mean of
the differences gets Student's 95 % interval (two-sided), and the interval decides:

* *supported*: the whole interval lies above zero;
* *not supported*: the whole interval lies below zero, or below the smallest effect that would
  matter, which each claim states before it is run. An effect that is surely above zero and surely
  too small to matter is *not supported* as well: the claim says more than that;
* *undecided*: anything else, and always with fewer than two seeds.

Two equal arms come out *supported* in 2.5 % of claims, the upper tail of a 95 % interval.

An endpoint with a *margin* asks for non-inferiority: minus the margin takes the place of zero, and
of the smallest effect that matters. The printed effect is the plain one.

A claim with several deciding endpoints (faster *and* lower) is supported if each of them is, and
not supported if one of them is not. The more questions a claim asks, the likelier a false positive,
so p-values are corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6), which
holds the probability of one wrong verdict among them to 2.5 % in each direction. That all parts
pass would need no correction (Berger 1982); with it the claim's verdict and those of its parts
agree. Printed intervals are of 95 % each, uncorrected.

No run is ever added, left out or cut short because of the verdict: the seeds are planned
beforehand, a run stops early only when its loss becomes NaN or infinite, and nothing is judged
before all planned runs are there.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from normkit.errors import OptionError, message
from normkit.lab.findings import Comparison, Verdict

__all__ = ["decide", "interval", "paired_test", "seeds_needed", "spread_ratios"]

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
"""The error of each direction of a two-sided interval."""

POWER = 0.8
"""The probability that a study with the suggested number of seeds is decided."""

MOST_SEEDS = 1_000_000
MOST_FREEDOM = 1e6
"""Degrees of freedom from which Student's distribution counts as normal."""


def interval(
    values: Sequence[float],
    *,
    resolution: float = 0.0,
    shared: float = 0.0,
    confidence: float = CONFIDENCE,
) -> tuple[float, float, float]:
    """Mean of the values and Student's interval for it: ``(mean, low, high)``.

    ``resolution`` is the step of the scale on which each of the two members of a difference was
    read (a grid of learning rates, one image of a test set). Rounding to a step r adds a variance
    of r²/12 to each member (Sheppard), so the variance of the differences is never taken below
    r²/6. Without this, five seeds that agree on a coarse scale would claim an interval of width
    zero.

    ``shared`` is a standard deviation by which all values may be off together, so that it does not
    get smaller with their number. Where the members of a difference are read on scales of their
    own, rounding is of this kind: it is the same for all seeds, and need not cancel. Degrees of
    freedom are then Welch and Satterthwaite's.

    Raises:
        OptionError: fewer than two values, or one that is not finite.

    >>> mean, low, high = interval([1.0, 2.0, 3.0])
    >>> print(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
    2.000 [-0.484, 4.484]
    """
    mean, error, freedom = _moments(values, resolution, shared)
    if error == 0:
        return mean, mean, mean
    low, high = stats.t.interval(confidence, freedom, loc=mean, scale=error)
    return mean, float(low), float(high)


def _moments(
    values: Sequence[float], resolution: float, shared: float
) -> tuple[float, float, float]:
    """The mean, its standard error, and the degrees of freedom of the latter."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2 or not np.isfinite(sample).all():
        raise OptionError(
            message(
                "at least two finite values for an interval",
                repr([float(value) for value in sample]),
                "run more seeds",
            )
        )
    variance = max(float(sample.var(ddof=1)), resolution**2 / 6)
    error, freedom = _with_shared(variance, sample.size, shared)
    return float(sample.mean()), error, freedom


def _with_shared(variance: float, count: int, shared: float) -> tuple[float, float]:
    """The standard error of a mean part of which is known, and its degrees of freedom."""
    sampling = variance / count
    whole = sampling + shared**2
    freedom = (count - 1) * (whole / sampling) ** 2 if sampling > whole * 1e-6 else MOST_FREEDOM
    return math.sqrt(whole), min(freedom, MOST_FREEDOM) if shared else count - 1


def _beyond(distance: float, error: float, freedom: float) -> float:
    """One-sided p value of a mean that lies so far on the claimed side of a bound."""
    if error == 0:  # all differences equal: as sure as can be
        return 0.0 if distance > 0 else 1.0
    return float(stats.t.sf(distance / error, freedom))


def paired_test(
    question: str,
    differences: Sequence[float],
    *,
    unit: str,
    smallest: float = 0.0,
    margin: float = 0.0,
    resolution: float = 0.0,
    shared: float = 0.0,
) -> Comparison | None:
    """Decide one question from its paired differences; None with fewer than two of them.

    ``smallest`` is the smallest effect that would matter, in the unit of the differences, and not
    negative. A ``margin`` makes it a test of non-inferiority: whether the effect is above
    -``margin``. ``resolution`` and ``shared`` as in :func:`interval`.

    >>> test = paired_test("Is A better?", [0.02, 0.03, 0.025], unit="accuracy", smallest=0.005)
    >>> test.word
    'supported'
    """
    if smallest < 0:
        raise OptionError(message("a smallest effect of 0 or more", repr(smallest), "use 0"))
    if len(differences) < 2:
        return None
    effect, low, high = interval(differences, resolution=resolution, shared=shared)
    _, error, freedom = _moments(differences, resolution, shared)
    above = _beyond(effect + margin, error, freedom)
    comparison = Comparison(
        question,
        unit,
        effect,
        low,
        high,
        len(differences),
        "undecided",
        smallest=smallest,
        p=above,
        shared=shared,
        freedom=freedom,
        margin=margin,
    )
    return dataclasses.replace(comparison, word=_word(above, _below(comparison)))


def _below(comparison: Comparison) -> float:
    """One-sided p value of an effect below the smallest that matters."""
    error = _error(comparison)
    return _beyond(
        comparison.smallest - comparison.margin - comparison.effect, error, _freedom(comparison)
    )


def _freedom(comparison: Comparison) -> float:
    return comparison.seeds - 1 if comparison.freedom is None else comparison.freedom


def _error(comparison: Comparison) -> float:
    """The standard error behind an interval."""
    quantile = float(stats.t.ppf(1 - TAIL, _freedom(comparison)))
    return (comparison.high - comparison.low) / (2 * quantile)


def _word(above: float, below: float) -> Verdict:
    if below < TAIL:
        return "not supported"
    return "supported" if above < TAIL else "undecided"


def decide(parts: Sequence[Comparison | None]) -> tuple[Verdict, list[Comparison]]:
    """The verdict on a claim all of whose parts must hold, and the parts with corrected words.

    A part that could not be compared (None: too few seeds) leaves the claim undecided, unless
    another part is not supported.

    >>> decide([None])
    ('undecided', [])
    >>> faster = paired_test("Faster?", [0.02, 0.03, 0.025], unit="accuracy")
    >>> lower = paired_test("Lower?", [0.1, 0.2, 0.3], unit="nats")
    >>> decide([lower])[0], decide([faster, lower])[0]
    ('undecided', 'undecided')
    """
    present = [part for part in parts if part is not None]
    above = _holm([part.p if part.p is not None else 1.0 for part in present])
    below = _holm([_below(part) for part in present])
    decided = []
    for part, p, against in zip(present, above, below, strict=True):
        decided.append(dataclasses.replace(part, word=_word(p, against), p=p, decides=True))
    words = [part.word for part in decided]
    if "not supported" in words:
        return "not supported", decided
    whole = bool(parts) and len(present) == len(parts)
    agreed = whole and all(word == "supported" for word in words)
    return ("supported" if agreed else "undecided"), decided


def _holm(p: Sequence[float]) -> list[float]:
    """Holm's corrected p values.

    Not statsmodels' ``multipletests``, which collects garbage twice in each call: in a process
    that has torch in it, that takes a second and these four lines nothing.
    """
    ranked = np.argsort(p)
    steps = np.asarray(p)[ranked] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[ranked] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(p) else steps
    return [float(each) for each in corrected]


def seeds_needed(comparison: Comparison, *, parts: int = 1) -> int | None:
    """Estimate the seeds that would decide in four studies of five, for the observed effect.

    Either that the effect is above zero, or that it is below the smallest that matters, whichever
    takes fewer; tested at the level that the first of so many ``parts`` has to meet. The power is
    that of the one-sided t test, from the noncentral t distribution. An estimate from few seeds,
    and no more than that. None where the effect lies where no number of seeds up to a million
    decides, or has no spread from which one could tell.

    >>> comparison = paired_test("?", [0.02, -0.01, 0.03, 0.01], unit="accuracy", smallest=0.005)
    >>> comparison.word, seeds_needed(comparison)
    ('undecided', 17)
    """
    variance = comparison.seeds * max(0.0, _error(comparison) ** 2 - comparison.shared**2)
    distance = max(
        comparison.effect + comparison.margin,
        comparison.smallest - comparison.margin - comparison.effect,
    )
    # Relative, for the interval's ends were rounded.
    if variance <= 1e-9 * comparison.shared**2 or distance <= 0:
        return None

    def power(seeds: int) -> float:
        error, freedom = _with_shared(variance, seeds, comparison.shared)
        bound = stats.t.ppf(1 - TAIL / parts, freedom)
        return float(stats.nct.sf(bound, freedom, distance / error))

    counts = range(comparison.seeds + 1, MOST_SEEDS)
    index = bisect.bisect_left(counts, POWER, key=power)
    return counts[index] if index < len(counts) else None


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
    count = pairs.shape[1]
    if count < 3:
        return []

    def halvings(sample: np.ndarray) -> float:
        one, other = np.maximum(sample.var(axis=1, ddof=1), max(resolution, 1e-12) ** 2 / 12)
        return float(np.log2(one / other)) / 2

    whole = halvings(pairs)
    left_out = [halvings(np.delete(pairs, index, axis=1)) for index in range(count)]
    return [count * whole - (count - 1) * each for each in left_out]
