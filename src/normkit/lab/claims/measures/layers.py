"""Decimal logarithms that C6 reads in each weight layer during training (probe "layers").

Gradients and weights multiply from layer to layer. *Decay* is the slope of the logarithm of the
gradient's norm over the layer's number (least squares), positive where gradients decay on their way
to the first layer. A look at which a value of some layer is zero or not finite is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import fmean, linear_regression

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study import NUMBER, WITH, WITHOUT, Curves, Measure, Unit, mean_of
from normkit.lab.claims.study.measures import Points
from normkit.lab.claims.study.units import UNKNOWN, decimal
from normkit.lab.runs import Run

__all__ = [
    "DECAY",
    "DECAY_AT_END",
    "DECAY_AT_START",
    "INPUTS",
    "WEIGHTS",
    "along_layers",
    "along_training",
    "decays",
    "looks",
    "power",
    "slope",
]

LAYERS = tuple(range(1, 8))
PER_LAYER = Unit("decades per layer", digits=3)
Levels = tuple[float, ...]


def layers_of(what: str) -> tuple[int, ...]:
    """The layers compared: of inputs all but the first's, which are the images."""
    return LAYERS[1:] if what == "input" else LAYERS


def looks(run: Run, what: str) -> dict[int, Levels]:
    """By step, the levels of all layers."""
    layers = [
        {step: value for step, _, value in run.metrics.get(f"layer{layer}_{what}", ())}
        for layer in layers_of(what)
    ]
    by_step = {}
    for step in sorted(layers[0]):
        values = [layer.get(step) for layer in layers]
        levels = tuple(math.log10(value) for value in values if value)
        if len(levels) == len(layers):
            by_step[step] = levels
    return by_step


def slope(levels: Levels) -> float:
    """By how much the level rises from one layer to the next.

    >>> slope((-3.0, -2.5, -2.0))
    0.5
    """
    return linear_regression(range(len(levels)), levels).slope


def _at(
    steps: Callable[[Run, list[int]], Iterable[int]],
    name: str,
    what: str,
    of: Callable[[Levels], float],
) -> Measure:
    """The mean of a figure of the levels over the looks that ``steps`` picks."""

    def read(run: Run) -> float | None:
        by_step = looks(run, what)
        values = [of(by_step[step]) for step in steps(run, list(by_step)) if step in by_step]
        return fmean(values) if values else None

    return Measure(name, read, PER_LAYER)


def _end(run: Run, steps: list[int]) -> Iterable[int]:
    return (run.step,)


DECAY = _at(lambda run, steps: steps, "decay", "gradient", slope)
DECAY_AT_START = _at(lambda run, steps: steps[:1], "decay, first step", "gradient", slope)
DECAY_AT_END = _at(_end, "decay, last step", "gradient", slope)
WEIGHTS = _at(_end, "weights, log10", "weight", fmean)
INPUTS = _at(_end, "inputs, log10", "input", fmean)


def power(measure: Measure, name: str, times: int = 1) -> Measure:
    """The number of which ``times`` a measure is the decimal logarithm."""

    def read(run: Run) -> float | None:
        level = measure.read(run)
        return None if level is None else 10 ** (times * level)

    return Measure(name, read, NUMBER)


def decays(act: str) -> Callable[[Evidence], str]:
    """The mean decay of both arms, which their difference does not tell, for a sentence."""

    def text(evidence: Evidence) -> str:
        means = {arm: mean_of(evidence.of(f"{act} {arm}"), DECAY) for arm in (WITHOUT, WITH)}
        shown = {
            arm: UNKNOWN if mean is None else ("+" if mean > 0 else "") + decimal(mean, 2)
            for arm, mean in means.items()
        }
        return ", ".join(f"{arm} {mean}" for arm, mean in shown.items())

    return text


def along_layers(key: str, when: str, pick: Callable[[Iterable[int]], int]) -> Curves:
    """The gradient's norm in each layer at one look: ``min`` picks the first, ``max`` the last."""

    def curve(run: Run) -> Points:
        by_step = looks(run, "gradient")
        return list(zip(LAYERS, by_step[pick(by_step)], strict=True)) if by_step else ()

    return Curves(
        key,
        f"Norm of the gradient that reaches each layer, {when}",
        "layer, from the image to the scores",
        "norm of the loss's gradient",
        NUMBER,
        curve,
        band="geometric",
        y_log=True,
    )


def along_training(what: str, name: str) -> Curves:
    """The geometric mean of the layers along training."""

    def curve(run: Run) -> Points:
        return [(step, fmean(levels)) for step, levels in looks(run, what).items()]

    layers = layers_of(what)
    return Curves(
        what,
        f"{name.capitalize()}, geometric mean of layers {layers[0]} to {layers[-1]}",
        "step",
        name,
        NUMBER,
        curve,
        band="geometric",
        y_log=True,
        markers=False,
    )
