"""Statistics of a layer, and two of them against each other in the layer's own units."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TINY", "LayerStatistics", "distance", "relative_error", "rms"]

TINY = torch.finfo(torch.float64).tiny
"""Replaces a variance of zero where a layer adds no ε."""

MAX_LOG = math.log(torch.finfo(torch.float64).max)
"""The exponential of a larger number overflows float64."""


class LayerStatistics(NamedTuple):
    """Population statistics of one layer, per channel, with their standard errors.

    Attributes:
        mean: (C,), float64.
        variance: (C,), float64, unbiased, as running variances are.
        mean_standard_error: (C,), in units of the values; NaN from a single batch.
        variance_standard_error: (C,), in squared units; NaN from a single batch.
        count: values per channel (samples, for a layer that averages over samples).
        bias: about which share of the deviation and of the variance they may be off because layers
            before normalized by batches of few samples; 0 where they did not.
        batches: how many there were; of a layer called several times for each, its calls.
    """

    mean: Tensor
    variance: Tensor
    mean_standard_error: Tensor
    variance_standard_error: Tensor
    count: int  # type: ignore[assignment]
    bias: float = 0.0
    batches: int = 0


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
