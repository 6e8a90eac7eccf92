"""Inputs are not standardized.

What it checks
    Whether the training inputs reach beyond 50, as bytes from 0 to 255 do, or have a mean of more
    than three deviations in most channels.

Why it is bad
    The first layers start with outputs, and gradients, a hundred times too large or all alike;
    batch normalization behind them hides it, and everything in front of it, or without it, learns
    badly. Small differences drown in a large mean at low precision.

Example
    images.float(), of bytes

Use instead
    (images.float() / 255 - mean) / deviation, with one mean and deviation per channel.

When it is right
    Where a layer or the model's own code standardizes them first, which is not reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding

GREATEST, DEVIATIONS = 50.0, 3.0


def check(exam: Examination) -> Iterator[Finding]:
    """Find training inputs far from mean 0 and deviation 1."""
    inputs = None if exam.training is None else exam.training.survey.inputs
    if inputs is None or not _taken_as_it_comes(exam):
        return
    varies = inputs.deviation > 0
    greatest = max(abs(inputs.least), abs(inputs.greatest))
    if not (math.isfinite(greatest) and bool(varies.any())):
        return
    off = float((inputs.mean.abs() / inputs.deviation)[varies].median())
    if greatest <= GREATEST and off <= DEVIATIONS:
        return
    mean, deviation = float(inputs.mean.mean()), float(inputs.deviation.mean())
    yield Finding(
        "warning",
        (),
        f"Training inputs go from {inputs.least:.4g} to {inputs.greatest:.4g}, with mean "
        f"{mean:.3g} and deviation {deviation:.3g} (thresholds: values to ±{GREATEST:g}, a mean of "
        f"{DEVIATIONS:g} deviations).",
        f"standardize them: (x - {mean:.3g}) / {deviation:.3g}, channel by channel",
        max(greatest / GREATEST, off / DEVIATIONS),
    )


def _taken_as_it_comes(exam: Examination) -> bool:
    """Return True if a convolution or a dense layer is the first with weights on the input."""

    def weighted(name: str) -> bool:
        return next(exam.model.get_submodule(name).parameters(), None) is not None

    first = next(filter(weighted, exam.flow.shapes), None)
    if first is None or not isinstance(exam.model.get_submodule(first), (_ConvNd, nn.Linear)):
        return False
    before = list(exam.flow.before(first))
    return [first, *before][-1] in exam.flow.entries and not any(map(weighted, before))
