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
    Where the first layer standardizes: nn.BatchNorm2d(channels) right at the input.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding

GREATEST, DEVIATIONS = 50.0, 3.0


def check(exam: Examination) -> Iterator[Finding]:
    """Find training inputs far from mean 0 and deviation 1."""
    inputs = None if exam.training is None else exam.training.survey.inputs
    if inputs is None or _standardized(exam):
        return
    ratios = inputs.mean.abs() / inputs.deviation.clamp_min(1e-12)
    off = (
        float(ratios[inputs.deviation > 0].median()) if bool((inputs.deviation > 0).any()) else 0.0
    )
    greatest = max(abs(inputs.least), abs(inputs.greatest))
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


def _standardized(exam: Examination) -> bool:
    """Return True if a layer normalizes the input as it comes."""
    first = next(iter(exam.flow.shapes), None)
    return first is not None and exam.norm(first) is not None
