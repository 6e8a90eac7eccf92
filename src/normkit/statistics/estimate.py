r"""Moments of a long stream of batches, and how sure they are.

Each batch (or block of neighbouring batches) is a *unit* with its own count, mean and sum of
squared deviations. The units merge exactly. How much they differ says how sure the merged moments
are, whatever makes values within one batch alike: with :math:`w_u = n_u / N`,

.. math::
    \hat\mu = \sum_u w_u \mu_u, \quad
    \hat v = \sum_u w_u z_u, \quad z_u = \frac{M_u}{n_u} + (\mu_u - \hat\mu)^2,

.. math::
    \mathrm{SE}(\hat\mu)^2 = \frac{U}{U-1} \sum_u w_u^2 (\mu_u - \hat\mu)^2, \quad
    \mathrm{SE}(\hat v)^2 = \frac{U}{U-1} \sum_u w_u^2 (z_u - \hat v)^2,

the linearized variance of a ratio, cluster by cluster (Cochran 1977, *Sampling Techniques*, §6 and
§9A), with Student's t on :math:`U - 1` degrees of freedom. Units count as independent: batches
that come in an order (by class, by time) are not, until blocks are longer than what they share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normkit.core.moments import Moments, merge_rows

__all__ = [
    "Estimate",
    "LayerStatistics",
    "Units",
    "distance",
    "relative_error",
    "rms",
    "statistics",
]

KEPT = 64
"""Units are merged two by two when there are twice as many, so memory does not grow."""


TINY = torch.finfo(torch.float64).tiny
"""In place of a variance of zero where a layer adds no ε."""


LARGEST = math.log(torch.finfo(torch.float64).max)
"""Of a larger logarithm there is no number in float64."""


class LayerStatistics(NamedTuple):
    """Population statistics of one layer, per channel, with their standard errors.

    Attributes:
        mean: (C,), float64.
        variance: (C,), float64, unbiased, as it is remembered.
        mean_standard_error: (C,), in units of the values; NaN from a single batch.
        variance_standard_error: (C,), in squared units; NaN from a single batch.
        count: values per channel (samples, for a layer that averages over samples).
    """

    mean: Tensor
    variance: Tensor
    mean_standard_error: Tensor
    variance_standard_error: Tensor
    count: int  # type: ignore[assignment]


class Units(NamedTuple):
    """Moments by unit: ``count`` (U,), ``mean`` and ``m2`` (U, C), float64."""

    count: Tensor  # type: ignore[assignment]
    mean: Tensor
    m2: Tensor

    @classmethod
    def join(cls, parts: Sequence[Units]) -> Units:
        """The units of all parts, in order."""
        return cls(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class Estimate:
    """Gathers the moments of batch after batch, in bounded memory.

    Args:
        channels: how many.
        within: the variance is an average of variances, and what lies between units is no part
            of it (a layer that averages over samples).

    >>> estimate = Estimate(1)
    >>> for values in ([0.0, 2.0], [4.0, 6.0]):
    ...     estimate.add(Moments.of(torch.tensor(values, dtype=torch.float64)[:, None], dim=0))
    >>> found = statistics(estimate.units())
    >>> found.mean.item(), round(found.variance.item(), 3), found.count
    (3.0, 6.667, 4)
    """

    def __init__(self, channels: int, within: bool = False) -> None:
        self._empty = torch.zeros(0, channels, dtype=torch.float64)
        self._full: list[Moments] = []
        self._open: list[Moments] = []
        self._size = 1  # batches in a unit
        self.within = within

    def add(self, *calls: Moments) -> None:
        """Take in one batch: of every call the layer had in it, with counts of a single number.

        Calls within one batch see the same samples, so they are one unit.
        """
        self._open.append(self._merged(calls))
        if len(self._open) < self._size:
            return
        self._full.append(self._merged(self._open))
        self._open = []
        if len(self._full) == 2 * KEPT:
            self._full = [self._merged(self._full[i : i + 2]) for i in range(0, 2 * KEPT, 2)]
            self._size *= 2

    def _merged(self, parts: Sequence[Moments]) -> Moments:
        return parts[0] if len(parts) == 1 else _merge(_stack(parts), self.within)

    def units(self) -> Units:
        """What has been taken in, unit by unit, on the CPU."""
        every = [*self._full, *([self._merged(self._open)] if self._open else [])]
        if not every:
            return Units(self._empty[:, 0], self._empty, self._empty)
        return Units(*(column.cpu() for column in _stack(every)))


def _stack(parts: Sequence[Moments]) -> Units:
    return Units(*(torch.stack([getattr(part, name) for part in parts]) for name in Units._fields))


def _merge(units: Units, within: bool) -> Moments:
    count = units.count[:, None]
    if not within:
        merged = merge_rows(count.expand_as(units.mean), units.mean, units.m2)
        return Moments(units.count.sum(), merged.mean, merged.m2)
    total = units.count.sum()
    return Moments(total, (count / total * units.mean).sum(0), units.m2.sum(0))


def statistics(units: Units, within: bool = False) -> LayerStatistics:
    """Merge units, and say how sure the result is; see the text of this module.

    ``units`` holds at least one value.
    """
    count, mean, m2 = units
    total, merged_mean, merged_m2 = (getattr(_merge(units, within), k) for k in Units._fields)
    share = (count / total)[:, None]
    apart = mean - merged_mean
    spread = m2 / count[:, None] + (0 if within else apart.square())
    biased = merged_m2 / total
    number = len(count)
    factor = number / (number - 1) if number > 1 else math.nan
    mean_error, variance_error = (
        (factor * (share * off).square().sum(0)).sqrt() for off in (apart, spread - biased)
    )
    # Averages of unbiased variances are unbiased already.
    variance = biased if within else merged_m2 / (total - 1)
    return LayerStatistics(merged_mean, variance, mean_error, variance_error, int(total))


def relative_error(found: LayerStatistics, eps: float) -> float:
    r"""One number for how unsure a layer's statistics are: 0.01 is 1 %.

    The larger of two root mean squares over channels: of :math:`\mathrm{SE}(\mu) / \sigma` and
    of :math:`\mathrm{SE}(v) / \sigma^2`, where :math:`\sigma^2 = v + \epsilon` is what the layer
    divides by, so a channel that is always zero counts as known.
    """
    scale = (found.variance + eps).clamp_min(TINY)
    mean = rms(found.mean_standard_error / scale.sqrt())
    variance = rms(found.variance_standard_error / scale)
    return math.nan if math.isnan(mean + variance) else max(mean, variance)


def distance(
    mean: Tensor, variance: Tensor, found: LayerStatistics, eps: float
) -> tuple[float, float]:
    r"""How far a mean and a variance are from those found: in deviations, and as a factor.

    Root mean square over channels of :math:`(\mu' - \mu) / \sigma`; and the exponential of that
    of :math:`\log (\sigma'^2 / \sigma^2)`, at least 1, with :math:`\sigma^2 = v + \epsilon`.
    NaN where one of them is not finite.
    """
    scale = (found.variance + eps).clamp_min(TINY)
    step = rms((mean - found.mean) / scale.sqrt())
    ratio = rms((variance + eps).clamp_min(TINY).log() - scale.log())
    return step, math.exp(ratio) if ratio < LARGEST else ratio * math.inf


def rms(values: Tensor) -> float:
    """Root mean square of all values."""
    return float(values.square().mean().sqrt())
