r"""Standard errors from few batches, moderated by errors that are known better.

Many batches show by their differences how far chance goes; from two or three, the standard errors
of some channels come out near zero by chance. So the squared standard error from :math:`U` batches
is averaged with one that is known better,

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

import torch
from torch import Tensor

from normkit.statistics.estimates.layer_statistics import TINY, LayerStatistics

__all__ = ["moderate_errors"]

PRIOR = 4
"""Weight of the standard error that is known better: that of so many batches."""

ALIKE = 8
"""Channels that count as one in that error, as channels of a layer vary together."""

MIN_SAMPLES = 8
"""Samples below which chance is unknown."""


def moderate_errors(
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
