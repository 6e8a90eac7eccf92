r"""Noise that batches put into statistics, from how much the batches of a measurement differ.

Recalibration gives a mean with its standard error over :math:`B` batches; one batch's mean is then
off by :math:`\sqrt{B}` times that, in deviations

.. math::
    r = \sqrt{B}\,\mathrm{SE}(\mu) / \sigma .

An average in which each batch replaces a share :math:`m` is off by :math:`r \sqrt{m / (2 - m)}`.
"""

from __future__ import annotations

import math

from normkit.doctor.examination import Examination
from normkit.statistics.estimates.layer_statistics import TINY, rms

__all__ = ["SMALL", "batch_noise", "noisy", "of_average"]

SMALL = 32
"""Batches of more samples are not called small, whatever they are off by."""


def noisy(batch_size: int) -> float:
    """Return from how many deviations on a batch's mean is too far off.

    0.4, as of six independent values; 0.3 of four samples or fewer, whose variance is off too.
    """
    return 0.3 if batch_size <= 4 else 0.4


def batch_noise(exam: Examination) -> dict[str, float]:
    """Return by layer how far one batch's mean is off, in deviations, typically of its channels."""
    training = exam.training
    if training is None or training.measured is None:
        return {}
    noise = {}
    for name, one in training.measured.layers.items():
        layer = exam.layers.get(name)
        eps = layer.eps if layer is not None else 0.0
        scale = (one.variance + eps).clamp_min(TINY).sqrt()
        value = math.sqrt(max(training.measured.batches, 1)) * rms(one.mean_standard_error / scale)
        if math.isfinite(value):
            noise[name] = value
    return noise


def of_average(noise: float, momentum: float) -> float:
    """Return how far an exponential average is off, for batches that are off by ``noise``.

    >>> round(of_average(1.0, 0.1), 3), of_average(1.0, 1.0)
    (0.229, 1.0)
    """
    return noise * math.sqrt(momentum / (2 - momentum))
