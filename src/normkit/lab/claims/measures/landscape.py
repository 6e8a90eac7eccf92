"""C25: readings along the gradient (probe "landscape") and of each channel (probe "channels").

Quantities of the landscape differ by factors, between networks and along training, so each is
averaged as its logarithm to base two: their difference is a number of halvings.
"""

from __future__ import annotations

import itertools
import math
from statistics import fmean

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study import HALVINGS, NUMBER, Curves, Measure, Series, Unit
from normkit.lab.claims.study.measures import Points
from normkit.lab.runs import Run

__all__ = ["CHANGE", "CHARTS", "FACTORS", "NOISE", "RANGE", "RELATIVE", "SHIFT", "SMOOTHNESS"]

NOISE = "without BN, the same noise"
"""The arm whose loss jumps over many decades: charts have it last."""

LAYERS = (1, 2, 3, 4)
DEVIATIONS = Unit("standard deviations", digits=3, least=0.0)


def _logarithm(what: str, name: str) -> Measure:
    """Average the logarithm of one quantity of the landscape over the looks of a run."""

    def read(run: Run) -> float | None:
        points = run.metrics.get(f"landscape_{what}", ())
        values = [math.log2(value) for _, _, value in points if value]
        return fmean(values) if values else None

    return Measure(name, read, HALVINGS)


RANGE = _logarithm("range", "range of the loss, log2")
CHANGE = _logarithm("change", "change of the gradient, log2")
RELATIVE = _logarithm("relative", "change over the gradient's norm, log2")
SMOOTHNESS = _logarithm("smoothness", "effective smoothness, log2")


def _power(measure: Measure, name: str) -> Measure:
    def read(run: Run) -> float | None:
        level = measure.read(run)
        return None if level is None else 2**level

    return Measure(name, read, NUMBER)


FACTORS = (
    _power(RANGE, "range of the loss"),
    _power(CHANGE, "change of the gradient"),
    _power(RELATIVE, "change over norm"),
    _power(SMOOTHNESS, "effective smoothness"),
)
"""The same four as plain numbers, for a table."""


def _shifts(run: Run) -> list[tuple[float, float]]:
    """By step: how far the channels' means moved since the look before, in their deviations.

    The mean over channels and layers; a channel that is constant at both looks is left out.
    """
    by_step: dict[int, list[float]] = {}
    for layer in LAYERS:
        means = run.vectors.get(f"channel{layer}_mean", {})
        spreads = run.vectors.get(f"channel{layer}_std", {})
        for before, after in itertools.pairwise(sorted(means.keys() & spreads.keys())):
            shifts = [
                abs(second - first) / math.hypot(one, other) * math.sqrt(2)
                for first, second, one, other in zip(
                    means[before], means[after], spreads[before], spreads[after], strict=True
                )
                if one or other
            ]
            if shifts:
                by_step.setdefault(after, []).append(fmean(shifts))
    return [(step, fmean(layers)) for step, layers in sorted(by_step.items())]


def _shift(run: Run) -> float | None:
    values = [value for _, value in _shifts(run)]
    return fmean(values) if values else None


SHIFT = Measure("shift of the inputs", _shift, DEVIATIONS, lambda run: list(_shifts(run)))


def _along_training(what: str, title: str, y: str) -> Curves:
    def curve(run: Run) -> Points:
        points = run.metrics.get(f"landscape_{what}", ())
        return [(step, math.log10(value) if value else None) for step, _, value in points]

    def series(evidence: Evidence) -> list[Series]:
        return [Series(arm, curve) for arm in sorted(evidence.arms, key=NOISE.__eq__)]

    return Curves(
        what,
        title,
        "step",
        y,
        NUMBER,
        series=series,
        band="geometric",
        y_log=True,
        markers=False,
    )


CHARTS = (
    _along_training(
        "range", "Range of the loss along the gradient, up to 4 learning rates", "loss, nats"
    ),
    _along_training("change", "Largest change of the gradient on the way", "norm of the change"),
    _along_training(
        "smoothness", "Effective smoothness: the gradient's change per distance", "per unit"
    ),
    Curves(
        "shift",
        "How far the channels' means move from one look to the next",
        "step",
        "shift of a channel's mean",
        DEVIATIONS,
        SHIFT.curve,
        markers=False,
    ),
)
