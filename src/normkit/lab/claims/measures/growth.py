"""Growth of a measure from the epoch at which it was smallest to the last.

A smallest of noisy values is low by chance, so its epoch is found in the other seeds: of a measure
that does not change, the difference has mean zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import numpy as np

from normkit.lab.by_image import Images, combine
from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study import Measure, Quantity

__all__ = ["since_least"]

Curves = Mapping[int, Mapping[float, float]]
"""By seed, the values that are known after each epoch."""


def since_least(arm: str, measure: Measure) -> Quantity:
    """Subtract an arm's measure at the epoch where the others' mean is smallest from its last."""

    def curves(evidence: Evidence) -> Curves:
        return {
            run.config.seed: {x: y for x, y in measure.curve(run) if y is not None}
            for run in evidence.of(arm)
        }

    def by_seed(evidence: Evidence) -> dict[int, float]:
        known = curves(evidence)
        return {seed: known[seed][x] - known[seed][y] for seed, (x, y) in _ends(known).items()}

    def images(evidence: Evidence) -> dict[int, Images]:
        known = {run.config.seed: dict(measure.image_curve(run)) for run in evidence.of(arm)}
        return {
            seed: combine(np.subtract, known[seed].get(x), known[seed].get(y))
            for seed, (x, y) in _ends(curves(evidence)).items()
        }

    return Quantity(by_seed, measure.unit, images)


def _ends(curves: Curves) -> dict[int, tuple[float, float]]:
    """Return by seed the last epoch, and that at which the mean of the other seeds is smallest."""
    ends = {}
    for seed, curve in curves.items():
        others = [each for other, each in curves.items() if other != seed]
        epochs = set(curve).intersection(*others) if others else set()
        if epochs:
            least = min(epochs, key=lambda epoch: (fmean(e[epoch] for e in others), epoch))
            ends[seed] = max(epochs), least
    return ends
