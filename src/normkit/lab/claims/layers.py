"""What was read in each weight layer along training (the probe "layers"), as figures and charts.

Everything is a decimal logarithm: gradients and weights multiply from layer to layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, linear_regression

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.parts import band
from normkit.lab.findings import Chart, Comparison, Line
from normkit.lab.runs import Run

__all__ = ["Levels", "Value", "at", "layer_chart", "looks", "slope", "smaller_by", "step_chart"]

Levels = tuple[float, ...]
Value = Callable[[Run], float | None]


def looks(run: Run, what: str, layers: Sequence[int]) -> dict[int, Levels]:
    """By step: log10 of what was read in each layer; steps with a zero or None are left out."""
    read = [
        {step: value for step, _, value in run.metrics.get(f"layer{layer}_{what}", ())}
        for layer in layers
    ]
    found = {}
    for step in sorted(read[0]):
        values = [layer.get(step) for layer in read]
        levels = tuple(math.log10(value) for value in values if value)
        if len(levels) == len(layers):
            found[step] = levels
    return found


def slope(levels: Levels) -> float:
    """By how much the level rises from one layer to the next, by least squares.

    >>> slope((-3.0, -2.5, -2.0))
    0.5
    """
    return linear_regression(range(len(levels)), levels).slope


def at(
    look: Callable[[Iterable[int]], int],
    what: str,
    of: Callable[[Levels], float],
    layers: Sequence[int],
) -> Value:
    """A figure of the levels at one look: ``min`` picks the first, ``max`` the last.

    A run whose last look shows nothing, or that had none, has no such figure.
    """

    def value(run: Run) -> float | None:
        found = looks(run, what, layers)
        if not found or (look is max and max(found) != run.step):
            return None
        return of(found[look(found)])

    return value


def smaller_by(found: Comparison | None) -> str:
    """A difference of logarithms as a factor, for a sentence.

    >>> smaller_by(Comparison("", "", -0.301, -0.477, -0.1, 5, "not supported"))
    '2.00 [1.26, 3.00] times larger'
    """
    if found is None:
        return "not yet known"
    ends = [10 ** abs(found.effect)]
    sign = -1 if found.effect < 0 else 1
    ends += sorted(10 ** (sign * end) for end in (found.low, found.high))
    middle, low, high = (f"{end:.2f}" for end in ends)
    return f"{middle} [{low}, {high}] times {'larger' if sign < 0 else 'smaller'}"


def _drawn(
    evidence: Evidence, x: Sequence[float], rows: Callable[[Run], Sequence[float | None]]
) -> list[Line]:
    """A line for each arm from logarithms: the geometric mean, so that no band goes below zero."""

    def power(levels: Sequence[float | None]) -> tuple[float | None, ...]:
        return tuple(None if level is None else 10**level for level in levels)

    lines = []
    for name in evidence.arms:
        line = band(name, name, x, [row for run in evidence.of(name) if (row := rows(run))])
        if line is not None:
            y, low, high = map(power, (line.y, line.low, line.high))
            lines.append(dataclasses.replace(line, y=y, low=low, high=high))
    return lines


def layer_chart(evidence: Evidence, layers: Sequence[int], *, first: bool) -> Chart | None:
    """The gradient's norm in each layer at the first or the last look."""

    def row(run: Run) -> Levels:
        found = looks(run, "gradient", layers)
        return found[(min if first else max)(found)] if found else ()

    lines = _drawn(evidence, layers, row)
    if not lines:
        return None
    when = "first step" if first else "end of training"
    ends = "; ".join(
        f"{line.arm} {line.y[0]:.2g} in layer 1 and {line.y[-1]:.2g} in layer {layers[-1]}"
        for line in lines
        if line.y[0] and line.y[-1]
    )
    return Chart(
        key=f"gradient-{'first' if first else 'last'}",
        title=f"Norm of the gradient that reaches each layer, {when}",
        x_label="layer, from the image to the scores",
        y_label="norm of the loss's gradient",
        lines=tuple(lines),
        text=(
            f"Norm of the loss's gradient with respect to each weight layer's output, {when}: "
            f"{ends}. Geometric mean of the seeds with its 95 % interval."
        ),
        y_log=True,
        markers=True,
    )


def step_chart(evidence: Evidence, what: str, layers: Sequence[int], name: str) -> Chart | None:
    """The geometric mean over the layers, along training."""
    steps = sorted({step for run in evidence.runs for step in looks(run, what, layers)})

    def row(run: Run) -> list[float | None]:
        found = looks(run, what, layers)
        return [fmean(found[step]) if step in found else None for step in steps]

    lines = _drawn(evidence, steps, row) if steps else []
    if not lines:
        return None
    ends = "; ".join(
        f"{line.arm} from {line.y[0]:.2f} to {line.y[-1]:.2f}"
        for line in lines
        if line.y[0] and line.y[-1]
    )
    title = f"{name.capitalize()}, layers {layers[0]} to {layers[-1]} together"
    return Chart(
        key=what,
        title=title,
        x_label="step",
        y_label="geometric mean of the layers",
        lines=tuple(lines),
        text=(
            f"{title}: the {len(layers)}th root of their product, along training. {ends}. "
            "The band is the 95 % interval."
        ),
        y_log=True,
    )
