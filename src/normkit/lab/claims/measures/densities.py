"""Distributions of the inputs of nonlinearities, from recorded quantiles and densities."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import NormalDist, fmean, pstdev

from normkit.lab.claims.study import MAGNITUDE, Curves, Measure
from normkit.lab.findings import Line
from normkit.lab.probes import HISTOGRAM_EDGES, normal_quantiles
from normkit.lab.runs import Run

__all__ = ["DISTANCE", "LAYERS", "WANDERING", "density_chart", "wasserstein"]

LAYERS = (1, 2, 3, 4)
NORMAL = normal_quantiles()
CENTRES = tuple((low + high) / 2 for low, high in itertools.pairwise(HISTOGRAM_EDGES))


def wasserstein(first: Sequence[float], second: Sequence[float]) -> float:
    """Wasserstein-1 distance of two distributions given by their quantiles at equal levels.

    >>> wasserstein((0.0, 1.0), (0.5, 1.5))
    0.5
    """
    return fmean(abs(a - b) for a, b in zip(first, second, strict=True))


def _quantiles(run: Run, layer: int) -> dict[int, tuple[float, ...]]:
    return dict(run.vectors.get(f"activation{layer}_quantiles", {}))


def _distances(run: Run) -> list[tuple[float, float | None]]:
    """By step: the distance to N(0, 1), averaged over the layers."""
    layers = [_quantiles(run, layer) for layer in LAYERS]
    return [
        (step, fmean(wasserstein(layer[step], NORMAL) for layer in layers))
        for step in layers[0]
        if all(step in layer for layer in layers)
    ]


def _distance(run: Run) -> float | None:
    values = [value for _, value in _distances(run) if value is not None]
    return fmean(values) if values else None


def _wandering(run: Run) -> float | None:
    distances = []
    for layer in LAYERS:
        quantiles = list(_quantiles(run, layer).values())
        if not quantiles:
            return None
        average = tuple(fmean(values) for values in zip(*quantiles, strict=True))
        spread = pstdev(average)
        if spread > 0:  # a dead layer has one value, always
            distances.append(fmean(wasserstein(each, average) for each in quantiles) / spread)
    return fmean(distances) if distances else None


DISTANCE = Measure("distance to N(0, 1)", _distance, MAGNITUDE, _distances)
"""The Wasserstein-1 distance to N(0, 1), averaged over layers and steps."""

WANDERING = Measure("wandering", _wandering, MAGNITUDE)
"""The mean Wasserstein-1 distance to a layer's average distribution (its Wasserstein barycentre,
the mean of the quantiles) in standard deviations of that average, so that a layer is not called
steady for being small; averaged over the layers."""


def density_chart(layer: int) -> Curves:
    """The density after a convolution at the end of training, with the normal density."""
    name = f"activation{layer}_density"

    def curve(run: Run) -> list[tuple[float, float | None]]:
        densities = run.vectors.get(name)
        return list(zip(CENTRES, densities[max(densities)], strict=True)) if densities else []

    normal = Line("N(0, 1)", CENTRES, tuple(map(NormalDist().pdf, CENTRES)), role="theory")
    return Curves(
        f"density{layer}",
        f"Input of the nonlinearity after convolution {layer}, end of training",
        "value",
        "density",
        MAGNITUDE,
        curve,
        extra=[normal],
        markers=False,
        peaks=True,
        more="The normal density N(0, 1) is highest at 0, 0.399.",
    )
