r"""Gaps between statistics that a layer keeps and those of its input, and which of them matter.

A gap matters if it is large and more than chance. Many batches show by their differences how far
chance goes; from two or three, the standard errors of some channels come out near zero by chance.
So the squared standard error from :math:`U` batches is averaged with one that is known better,

.. math::
    \mathrm{SE}^2 = \frac{(U - 1)\,\mathrm{SE}_U^2 + \nu\,\overline{\mathrm{SE}_U^2}
    + (\nu_0 - \nu)\,\mathrm{SE}_n^2}{U - 1 + \nu_0}, \qquad
    \nu = \min\!\left(\nu_0, \tfrac{(C - 1)(U - 1)}{8}\right),

as moderated t statistics do (Smyth 2004, *Linear models and empirical Bayes methods for assessing
differential expression in microarray experiments*), with :math:`\nu_0 = 4`: the mean over
:math:`C` channels, each relative to its variance, where they and the batches are enough; and where
not, that of :math:`n` independent samples, :math:`v / n` for a mean and
:math:`2 v^2 / (n - 1)` for a variance, which counts a sample's values as one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from normkit.statistics.estimates.bias import TINY, distance, rms
from normkit.statistics.estimates.estimate import LayerStatistics

__all__ = ["MIN_GAP", "Gap", "gap_between", "with_errors"]

MIN_GAP = 0.1
"""Smallest gap that matters, of a deviation or of the variance; running averages differ by less."""

MIN_ERRORS = 3.0
"""Smallest significant gap, in standard errors, as a root mean square over channels."""

PRIOR = 4
"""Weight of the standard error that is known better: that of so many batches."""

ALIKE = 8
"""Channels that count as one in that error, as channels of a layer vary together."""

MIN_SAMPLES = 8
"""Samples below which chance is unknown."""


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


def with_errors(
    measured: LayerStatistics, batches: int, samples: int, eps: float
) -> LayerStatistics:
    """Moderate the standard errors of statistics from a few batches (top of this module).

    Args:
        measured: the statistics, with the standard errors that batches show; NaN from one batch.
        batches: number of batches, or blocks of them.
        samples: number of samples in all; below ``MIN_SAMPLES`` the errors are NaN.
        eps: what the layer adds to a variance, so that a constant channel has an error too.
    """
    n = min(measured.count, samples)
    if n < MIN_SAMPLES:
        unknown = torch.full_like(measured.mean, math.nan)
        return measured._replace(mean_standard_error=unknown, variance_standard_error=unknown)
    scale = (measured.variance + eps).clamp_min(TINY)
    mean = _moderated(measured.mean_standard_error / scale.sqrt(), batches, 1 / n)
    variance = _moderated(measured.variance_standard_error / scale, batches, 2 / (n - 1))
    return measured._replace(
        mean_standard_error=mean * scale.sqrt(), variance_standard_error=variance * scale
    )


def _moderated(error: Tensor, batches: int, of_samples: float) -> Tensor:
    """Average the squares of relative standard errors with those that are known better."""
    if batches < 2:
        return torch.full_like(error, math.sqrt(of_samples))
    pooled = min(PRIOR, (len(error) - 1) * (batches - 1) / ALIKE)
    square = error.square()
    total = (batches - 1) * square + pooled * square.mean() + (PRIOR - pooled) * of_samples
    return (total / (batches - 1 + PRIOR)).sqrt()
