"""From paired differences to a verdict: the one place where a claim is decided.

Each seed gives one difference, arm against arm, positive where it favours the claim. The mean of
the differences gets Student's 95 % interval (two-sided). Each claim states before it is run the
smallest effect that matters, m, or the margin d that may be lost. A *part* is

* *too small to matter*: the interval lies within ±m;
* *confirmed*: it lies above zero, and the effect is at least m;
* *opposite*: it lies below zero;
* *open*: anything else, and always with fewer than two seeds.

The first that holds counts, so each effect has one word. A part with a margin (non-inferiority) is
*confirmed* where the interval lies above −d, *opposite* where it lies below, *open* otherwise. What
is printed is the plain effect; m and d are drawn beside it.

A *claim* is *confirmed* if all of its deciding parts are, *partly* confirmed if some are; *refuted*
if none is and at least one is too small to matter or opposite; *open* otherwise. That all parts
hold needs no correction for their number (Berger 1982, Technometrics 24).

Two equal arms come out *confirmed* in at most 2.5 % of parts, the upper tail of a 95 % interval,
and *opposite* in as many. A page has many parts, so that a few may be confirmed by chance:
:func:`corrected` says which remain when all of them are tested together (Holm 1979, Scandinavian
Journal of Statistics 6), for any dependence between them; some share runs.

No run is ever added, left out or cut short because of the verdict: the seeds are planned
beforehand, a run stops early only when its loss becomes NaN or infinite, and nothing is judged
before all planned runs are there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from normkit.errors import OptionError, message
from normkit.lab.findings import TAIL, Comparison, PartWord, Verdict

__all__ = ["corrected", "decide", "interval", "paired_test"]

MOST_FREEDOM = 1e6
"""Degrees of freedom from which Student's distribution counts as normal."""


def interval(
    values: Sequence[float],
    *,
    resolution: float = 0.0,
    shared: float = 0.0,
    confidence: float = 1 - 2 * TAIL,
) -> tuple[float, float, float]:
    """Mean of the values and Student's interval for it: ``(mean, low, high)``.

    ``resolution`` is the step of the scale on which each of the two members of a difference was
    read (a grid of learning rates, one image of a test set). Rounding to a step r adds a variance
    of r²/12 to each member (Sheppard), so the variance of the differences is never taken below
    r²/6. Without this, five seeds that agree on a coarse scale would claim an interval of width
    zero.

    ``shared`` is a standard deviation by which all values may be off together, so that it does not
    get smaller with their number: the choice of the test images (:mod:`normkit.lab.crossed`), or
    rounding where the members of a difference are read on scales of their own, which is the same
    for all seeds and need not cancel. Degrees of freedom are then Welch and Satterthwaite's. That
    approximation gives two or three seeds far too many of them, so the interval is never narrower
    than without a shared part: it contains the truth in 95 to 98 % of studies of two seeds, 95 of
    three, 94.5 to 95 of five or more, whichever part is the larger.

    Raises:
        OptionError: fewer than two values, or one that is not finite.

    >>> mean, low, high = interval([1.0, 2.0, 3.0])
    >>> print(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
    2.000 [-0.484, 4.484]
    """
    mean, error, freedom = _moments(values, resolution, shared)
    if error == 0:
        return mean, mean, mean
    half = error * _quantile((1 + confidence) / 2, freedom)
    return mean, mean - half, mean + half


def _quantile(probability: float, freedom: float) -> float:
    """Return a quantile of Student's distribution; scipy.stats takes forty times as long."""
    return float(special.stdtrit(freedom, probability))


def _moments(
    values: Sequence[float], resolution: float, shared: float
) -> tuple[float, float, float]:
    """Return the mean, its standard error, and the degrees of freedom of the latter."""
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
    error, freedom = _standard_error(variance, sample.size, shared)
    return float(sample.mean()), error, freedom


def _standard_error(variance: float, count: int, shared: float) -> tuple[float, float]:
    """Return a mean's standard error, of which a part is known, and its degrees of freedom."""
    sampling = variance / count
    if not shared:
        return math.sqrt(sampling), count - 1
    whole = sampling + shared**2
    freedom = (count - 1) * (whole / sampling) ** 2 if sampling > whole * 1e-6 else MOST_FREEDOM
    both = math.sqrt(whole), min(freedom, MOST_FREEDOM)
    alone = math.sqrt(sampling), float(count - 1)
    return max(both, alone, key=lambda each: each[0] * _quantile(1 - TAIL, each[1]))


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
    -``margin``. ``resolution`` and ``shared`` as in :func:`interval`. A constant, the same at all
    seeds, is not a matter of chance and gets no ``p``.

    >>> test = paired_test("Is A better?", [0.02, 0.03, 0.025], unit="accuracy", smallest=0.005)
    >>> test.word
    'confirmed'
    """
    if smallest < 0:
        raise OptionError(message("a smallest effect of 0 or more", repr(smallest), "use 0"))
    if len(differences) < 2:
        return None
    effect, low, high = interval(differences, resolution=resolution, shared=shared)
    _, error, freedom = _moments(differences, resolution, shared)
    return Comparison(
        question,
        unit,
        effect,
        low,
        high,
        len(differences),
        _word(effect, low, high, smallest, margin),
        smallest=smallest,
        p=float(special.stdtr(freedom, -(effect + margin) / error)) if error else None,
        shared=shared,
        freedom=freedom,
        margin=margin,
    )


def _word(effect: float, low: float, high: float, smallest: float, margin: float) -> PartWord:
    if margin:
        return "confirmed" if low > -margin else "opposite" if high < -margin else "open"
    if -smallest < low and high < smallest:
        return "too small to matter"
    if low > 0 and effect >= smallest:
        return "confirmed"
    return "opposite" if high < 0 else "open"


def decide(parts: Sequence[Comparison | None]) -> tuple[Verdict, list[Comparison]]:
    """Return the verdict on a claim with these parts, and those that could be compared.

    A part that could not be (None: too few seeds) is open.

    >>> decide([None])
    ('open', [])
    >>> faster = paired_test("Faster?", [0.02, 0.03, 0.025], unit="accuracy")
    >>> lower = paired_test("Lower?", [0.1, 0.2, 0.9], unit="nats")
    >>> decide([faster])[0], decide([lower])[0], decide([faster, lower])[0]
    ('confirmed', 'open', 'partly')
    """
    decided = [dataclasses.replace(part, decides=True) for part in parts if part is not None]
    words = [part.word for part in decided]
    confirmed = words.count("confirmed")
    if confirmed:
        return ("confirmed" if confirmed == len(parts) else "partly"), decided
    return ("open" if set(words) <= {"open"} else "refuted"), decided


def corrected(parts: Sequence[Comparison]) -> list[bool]:
    """Say of each part whether it is still confirmed when all of them are tested together.

    A part without ``p`` is not a matter of chance, and is left out of the correction.

    >>> parts = [paired_test("?", [1, 1.1, step], unit="") for step in (0.9, 0.5)]
    >>> [part.word for part in parts], corrected(parts)
    (['confirmed', 'confirmed'], [True, True])
    """
    together = iter(_holm([part.p for part in parts if part.p is not None]))
    clear = [part.p is None or next(together) < TAIL for part in parts]
    return [part.word == "confirmed" and sure for part, sure in zip(parts, clear, strict=True)]


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
