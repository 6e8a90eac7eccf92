"""Gaps between statistics that a layer keeps and those of its input, and which of them matter.

A gap matters if it is large and more than chance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from normkit.statistics.estimates.layer_statistics import TINY, LayerStatistics, distance, rms

__all__ = ["MIN_GAP", "Gap", "gap_between"]

MIN_GAP = 0.1
"""Smallest gap that matters, of a deviation or of the variance; running averages differ by less."""

MIN_ERRORS = 3.0
"""Smallest significant gap, in standard errors, as a root mean square over channels."""


class Gap(NamedTuple):
    """Running statistics of a layer against those of its input: root mean squares over channels.

    Attributes:
        mean: distance of the means, in deviations of the input.
        variance: typical factor, at least 1, between the variances.
        mean_errors: distance of the means in their standard errors; about 1 is chance.
        variance_errors: of the variances, likewise.
    """

    mean: float
    variance: float
    mean_errors: float
    variance_errors: float

    @property
    def is_large(self) -> bool:
        """True if it is large enough to matter, more than chance or not."""
        return not (self.mean <= MIN_GAP and self.variance <= 1 + MIN_GAP)

    @property
    def matters(self) -> bool:
        """True if it is large enough to matter and significant, or not finite."""
        if not math.isfinite(self.mean + self.variance):
            return True
        return (self.mean > MIN_GAP and self.mean_errors > MIN_ERRORS) or (
            self.variance > 1 + MIN_GAP and self.variance_errors > MIN_ERRORS
        )


def gap_between(running: LayerStatistics, measured: LayerStatistics, eps: float) -> Gap:
    """Compare a layer's running statistics with those measured in its input."""
    scale = (measured.variance + eps).clamp_min(TINY)
    ratio = (running.variance + eps).clamp_min(TINY).log() - scale.log()
    return Gap(
        *distance(running.mean, running.variance, measured, eps),
        _in_errors(running.mean - measured.mean, measured.mean_standard_error),
        # Of the logarithm, as a variance from few values is skewed.
        _in_errors(ratio, measured.variance_standard_error / scale),
    )


def _in_errors(step: Tensor, error: Tensor) -> float:
    # A constant channel whose running statistics say so has no gap.
    return rms(torch.where(step == 0, torch.zeros_like(step), step / error))
