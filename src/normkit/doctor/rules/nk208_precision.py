"""Mean is too far from zero for the precision.

What it checks
    How far apart neighbouring numbers of its type are at the mean of a layer's input, and at that
    of the training inputs, in deviations of these; a quarter is the threshold.

Why it is bad
    Normalization takes the mean away and divides by the deviation: what is left are the last few
    digits. bfloat16 has three of them, and a mean of 64 deviations leaves none.

Example
    model.bfloat16() with inputs from 0 to 255, or a bias of 100 before a layer.

Use instead
    Standardize the inputs, drop the bias before the layer, or run what is in front of it in
    float32 (torch.autocast keeps the weights in it, not the activations).

When it is right
    Never.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.survey import Inputs
from normkit.statistics.estimates.layer_statistics import TINY

SPACING = 0.25


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose input has lost its digits to its mean."""
    training = exam.training
    if training is None:
        return
    if (finding := _inputs(training.survey.inputs)) is not None:  # layers follow from it
        yield finding
        return
    if training.measured is None:
        return
    lost = {}
    for name, one in training.measured.layers.items():
        dtype = exam.flow.dtypes.get(name.partition("[")[0])
        if dtype is None or not dtype.is_floating_point:
            continue
        deviation = one.variance.clamp_min(TINY).sqrt()
        spacing = torch.finfo(dtype).eps * one.mean.abs() / deviation
        varies = one.variance > TINY
        if bool(varies.any()) and float(value := spacing[varies].quantile(0.9)) > SPACING:
            lost[name] = (float(value), dtype)
    if not lost:
        return
    worst, dtype = max(lost.values(), key=lambda pair: pair[0])
    yield Finding(
        "warning",
        tuple(lost),
        f"At the mean of its input, numbers of {str(dtype).removeprefix('torch.')} are "
        f"{worst:.2g} deviations apart (threshold {SPACING}, tenth worst of a hundred channels): "
        "what the layer divides up is rounding.",
        "standardize the inputs, or run what is before the layer in float32",
        worst,
    )


def _inputs(inputs: Inputs | None) -> Finding | None:
    if inputs is None or not inputs.dtype.is_floating_point:
        return None
    varies = inputs.deviation.square() > TINY
    if not bool(varies.any()):
        return None
    spacing = torch.finfo(inputs.dtype).eps * inputs.mean.abs() / inputs.deviation
    value = float(spacing[varies].median())
    if not value > SPACING:
        return None
    return Finding(
        "warning",
        (),
        f"At the mean of the training inputs, {float(inputs.mean.mean()):.4g}, numbers of "
        f"{str(inputs.dtype).removeprefix('torch.')} are {value:.2g} deviations apart "
        f"(threshold {SPACING}): what differs is rounded away before the first layer.",
        "standardize the inputs in float32, then convert them",
        value,
    )
