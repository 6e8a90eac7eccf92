"""Confidence intervals of a layer's statistics."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normkit.statistics.estimates.layer_statistics import LayerStatistics

__all__ = ["confidence_intervals"]


def confidence_intervals(
    one: LayerStatistics, units: int, confidence: float
) -> tuple[Tensor, Tensor]:
    """Return intervals of mean and variance, each (2, C), by Student's t on ``units`` - 1.

    Wider on both sides by the bias. Needs scipy.
    """
    from scipy import stats

    t = float(stats.t.ppf(0.5 + confidence / 2, units - 1))
    sides = torch.tensor([[-t], [t]], dtype=torch.float64, device="cpu")
    mean = one.mean + sides * one.mean_standard_error
    mean = mean + sides.sign() * one.bias * one.variance.sqrt()
    # A variance is positive and its error skewed upwards: the interval is of its logarithm.
    share = one.variance_standard_error / one.variance
    width = share.nan_to_num(0.0) * t + math.log1p(one.bias)
    variance = one.variance * (sides.sign() * width).exp()
    return mean, variance
