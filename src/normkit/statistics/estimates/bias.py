r"""Statistics against each other, in the layer's own units: errors, distances, and the bias.

No difference between units shows the *bias*: where layers before normalize by each batch's own
moments, a batch of n samples loses one part in n of what varies between samples, in every batch
alike. :class:`~normkit.statistics.estimates.estimate.Tally` gathers 1/n, weighed by values, so that
a small last batch counts for as little as it contributes. What later layers are given is off by
0.05/n to 2.7/n (six networks, batches of 1 to 64: docs/recalibration.md), the more the longer the
tails and the deeper: :func:`state_bias` estimates it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from normkit.statistics.estimates.estimate import LayerStatistics

__all__ = ["LARGE_BIAS", "MAX_BIAS", "TINY", "distance", "relative_error", "rms", "state_bias"]

MAX_BIAS = 0.1
"""Largest 1/n of a single pass: batches of ten samples. To first order in it, the standard errors
are right, and measured biases are mostly below it."""

LARGE_BIAS = 0.6
"""Largest bias that a single pass is left with."""

ONE_BATCH = 2.7
"""Bias times n, the largest of docs/recalibration.md, where one batch shows no spread."""

TINY = torch.finfo(torch.float64).tiny
"""Replaces a variance of zero where a layer adds no ε."""

MAX_LOG = math.log(torch.finfo(torch.float64).max)
"""The exponential of a larger number overflows float64."""


def relative_error(result: LayerStatistics, eps: float) -> float:
    r"""Summarize a layer's standard errors in one number; 0.01 is 1 %.

    The larger of two root mean squares over channels: of :math:`\mathrm{SE}(\mu) / \sigma` and
    of :math:`\mathrm{SE}(v) / \sigma^2`, where :math:`\sigma^2 = v + \epsilon` is what the layer
    divides by, so a channel that is always zero counts as known.
    """
    scale = (result.variance + eps).clamp_min(TINY)
    mean = rms(result.mean_standard_error / scale.sqrt())
    variance = rms(result.variance_standard_error / scale)
    return math.nan if math.isnan(mean + variance) else max(mean, variance)


def state_bias(
    statistics: Mapping[str, LayerStatistics], eps: Mapping[str, float]
) -> dict[str, LayerStatistics]:
    """Estimate the bias of a pass in which batches normalized themselves; ``statistics`` by calls.

    The squared relative standard error of a single batch is 2/n for independent normal values, more
    with longer tails or where batches come in an order, less where a sample has many values. The
    largest of: 1/n; this figure of this layer, or of one before; half the sum of the figures of
    those before, as losses add up with depth. ``ONE_BATCH`` / n where there is one batch, which
    shows no such figure. An estimate and no bound. Behind no layer it is 0.
    """
    stated, largest, total = {}, 0.0, 0.0
    for name, one in statistics.items():
        spread = one.batches * relative_error(one, eps[name]) ** 2
        known = not math.isnan(spread)
        largest = max(largest, spread if known else ONE_BATCH * one.bias)
        stated[name] = one._replace(bias=max(one.bias, largest, total / 2) if one.bias else 0.0)
        total += spread if known else 0.0
    return stated


def distance(
    mean: Tensor, variance: Tensor, result: LayerStatistics, eps: float
) -> tuple[float, float]:
    r"""Distance of a mean and a variance from a result: in deviations, and as a factor.

    Root mean square over channels of :math:`(\mu' - \mu) / \sigma`; and the exponential of that
    of :math:`\log (\sigma'^2 / \sigma^2)`, at least 1, with :math:`\sigma^2 = v + \epsilon`.
    NaN where one of them is not finite.
    """
    scale = (result.variance + eps).clamp_min(TINY)
    step = rms((mean - result.mean) / scale.sqrt())
    ratio = rms((variance + eps).clamp_min(TINY).log() - scale.log())
    return step, math.exp(ratio) if ratio < MAX_LOG else ratio * math.inf


def rms(values: Tensor) -> float:
    """Take the root mean square of all values."""
    return float(values.square().mean().sqrt())
