r"""Moments of a long stream of batches, and their standard errors.

Each batch (or block of neighbouring batches) is a *unit* with its own count, mean and sum of
squared deviations. The units merge exactly, and their differences give the standard errors of
the merged moments, whatever makes values within one batch alike: with :math:`w_u = n_u / N`,

.. math::
    \hat\mu = \sum_u w_u \mu_u, \quad
    \hat v = \sum_u w_u z_u, \quad z_u = \frac{M_u}{n_u} + (\mu_u - \hat\mu)^2,

.. math::
    \mathrm{SE}(\hat\mu)^2 = \frac{U}{U-1} \sum_u w_u^2 (\mu_u - \hat\mu)^2, \quad
    \mathrm{SE}(\hat v)^2 = \frac{U}{U-1} \sum_u w_u^2 (z_u - \hat v)^2,

the linearized variance of a ratio, cluster by cluster (Cochran 1977, *Sampling Techniques*, §6 and
§9A), with Student's t on :math:`U - 1` degrees of freedom. Units count as independent: batches
that come in an order (by class, by time) are not, until blocks are longer than what they share.

Several processes need only add up: every line above is a sum over units once the one before it is
known, so four sums give all ranks the same result (:func:`merge_statistics`), and no unit travels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normkit.core.moments import Moments, merge_rows
from normkit.statistics.estimates.bias import Tally
from normkit.statistics.estimates.layer_statistics import LayerStatistics

__all__ = [
    "Estimate",
    "Total",
    "Units",
    "merge_shares",
    "merge_statistics",
    "statistics",
]

MAX_UNITS = 128
"""Units are merged two by two when there are this many, so memory stays bounded."""

Total = Callable[[Tensor], Tensor]
"""Sums a vector over all ranks; the identity where there is one."""


class Units(NamedTuple):
    """Moments by unit: ``count`` (U,), ``mean`` and ``m2`` (U, C), float64."""

    count: Tensor  # type: ignore[assignment]
    mean: Tensor
    m2: Tensor


class Estimate:
    """Gathers the moments of batch after batch, in bounded memory.

    Args:
        channels: how many.
        per_sample: the variance is an average of variances over samples, without what lies
            between units (instance normalization).

    >>> estimate = Estimate(1)
    >>> for values in ([0.0, 2.0], [4.0, 6.0]):
    ...     estimate.add(Moments.of(torch.tensor(values, dtype=torch.float64)[:, None], dim=0))
    >>> result = statistics(estimate.units())
    >>> result.mean.item(), round(result.variance.item(), 3), result.count
    (3.0, 6.667, 4)
    """

    def __init__(self, channels: int, per_sample: bool = False) -> None:
        self._none = torch.zeros(0, channels, dtype=torch.float64, device="cpu")
        self._complete: list[Moments] = []
        self._open: list[Moments] = []
        self._batches_per_unit = 1
        self.per_sample = per_sample
        self.tally = Tally()

    def add(self, *calls: Moments) -> None:
        """Add one batch: the moments of each call of the layer, with scalar counts.

        Calls within one batch see the same samples, so they are one unit.
        """
        self._open.append(self._merge(calls))
        if len(self._open) < self._batches_per_unit:
            return
        self._complete.append(self._merge(self._open))
        self._open = []
        if len(self._complete) == MAX_UNITS:
            pairs = range(0, MAX_UNITS, 2)
            self._complete = [self._merge(self._complete[i : i + 2]) for i in pairs]
            self._batches_per_unit *= 2

    def _merge(self, parts: Sequence[Moments]) -> Moments:
        return parts[0] if len(parts) == 1 else _merge(_stack(parts), self.per_sample)

    def units(self) -> Units:
        """Everything added so far, unit by unit, on the CPU."""
        every = [*self._complete, *([self._merge(self._open)] if self._open else [])]
        if not every:
            return Units(self._none[:, 0], self._none, self._none)
        return Units(*(column.cpu() for column in _stack(every)))

    def whole(self) -> Units:
        """Everything added so far, as one unit, on the CPU."""
        merged = _merge(self.units(), self.per_sample)
        return Units(merged.count[None], merged.mean[None], merged.m2[None])


def _stack(parts: Sequence[Moments]) -> Units:
    return Units(*(torch.stack([getattr(part, name) for part in parts]) for name in Units._fields))


def _merge(units: Units, per_sample: bool) -> Moments:
    """Merge units; at least one."""
    count = units.count[:, None]
    if not per_sample:
        merged = merge_rows(count.expand_as(units.mean), units.mean, units.m2)
        return Moments(units.count.sum(), merged.mean, merged.m2)
    total = units.count.sum()
    return Moments(total, (count / total * units.mean).sum(0), units.m2.sum(0))


def merge_shares(share: Moments, total: Total, between: Tensor | float = 1.0) -> Moments:
    """Merge the moments that every rank brings into those of all, with three sums.

    The first sum gives a common origin, the weighted mean up to rounding; the second corrects it,
    so that an offset common to all values costs no digits; the third takes squared deviations
    from the result. Nothing is subtracted that was summed: E[x²] − E[x]² appears nowhere, and a
    rank without data adds zeros.

    Args:
        share: this rank's moments; ``count`` has the shape of ``mean`` (C,), and may hold weights.
        total: sums a vector over ranks.
        between: 1 where what lies between ranks belongs to the variance, 0 where not; or (C,).
    """
    count, weighted = total(torch.cat([share.count, share.count * share.mean])).chunk(2)
    divisor = torch.where(count > 0, count, 1.0)
    origin = weighted / divisor
    mean = origin + total(share.count * (share.mean - origin)) / divisor
    m2 = total(share.m2 + between * share.count * (share.mean - mean).square())
    return Moments(count, mean, m2)


def merge_statistics(
    units: Mapping[str, Units],
    per_sample: Mapping[str, bool],
    total: Total,
    tallies: Mapping[str, Tally] | None = None,
) -> tuple[dict[str, LayerStatistics], dict[str, int]]:
    """Merge the units of all ranks, layer by layer: the statistics, and the numbers of units.

    All layers travel together, in four sums of 2C, C, C and 3C + 2L numbers for C channels in L
    layers. Layers without a value on any rank are omitted.

    Args:
        units: this rank's; every rank names the same layers in the same order, and one with
            no data of a layer brings no units of it.
        per_sample: by layer, whether its variance is an average over samples.
        total: sums a vector over ranks.
        tallies: by layer, this rank's; none where nothing is said of a bias.
    """
    sizes = [one.mean.shape[1] for one in units.values()]
    between = _by_channel([0.0 if per_sample[name] else 1.0 for name in units], sizes)
    numbers = _by_channel([float(len(one.count)) for one in units.values()], sizes)
    shares = [_share(one, per_sample[name]) for name, one in units.items()]
    share = Moments(*(torch.cat([getattr(part, key) for part in shares]) for key in Units._fields))
    merged = merge_shares(share, total, between)
    wholes = (Moments(*one) for one in _split(merged.count, merged.mean, merged.m2, sizes=sizes))
    rows = [
        _squares(one, whole, per_sample[name])
        for (name, one), whole in zip(units.items(), wholes, strict=True)
    ]
    tallied = [(tallies or {}).get(name, Tally()) for name in units]
    tally = torch.tensor(tallied, dtype=torch.float64, device="cpu")
    parts = [numbers, *(row[0] for row in rows), *(row[1] for row in rows), tally.flatten()]
    channels, layers = len(numbers), len(sizes)
    numbers, *squares, tally = total(torch.cat(parts)).split([*[channels] * 3, 2 * layers])
    factor = torch.where(numbers > 1, numbers / (numbers - 1), math.nan)
    # Averages of unbiased variances are unbiased already.
    variance = merged.m2 / (merged.count - between)
    errors = ((factor * column).sqrt() for column in squares)
    columns = (merged.mean, variance, *errors, merged.count, numbers)
    result, numbers_of = {}, {}
    tally_rows = tally.view(layers, 2).tolist()
    rest = zip(_split(*columns, sizes=sizes), tally_rows, strict=True)
    for name, (row, (calls, lost)) in zip(units, rest, strict=True):
        mean, var, mean_error, var_error, count, number = row
        if number.any():
            result[name] = LayerStatistics(
                mean, var, mean_error, var_error, int(count[0]), lost / float(count[0]), int(calls)
            )
            numbers_of[name] = int(number[0])
    return result, numbers_of


def _by_channel(values: Sequence[float], sizes: Sequence[int]) -> Tensor:
    """Repeat each layer's number for each of its channels."""
    numbers = torch.tensor(values, dtype=torch.float64, device="cpu")
    return numbers.repeat_interleave(torch.tensor(sizes, device="cpu"))


def _split(*columns: Tensor, sizes: Sequence[int]) -> Iterator[tuple[Tensor, ...]]:
    """Split what stands for the channels of all layers into what stands for each layer's."""
    return zip(*(column.split(list(sizes)) for column in columns), strict=True)


def _share(units: Units, per_sample: bool) -> Moments:
    """Merge one rank's units; zeros if there are none."""
    if not len(units.count):
        none = torch.zeros_like(units.mean.sum(0))
        return Moments(none, none, none)
    merged = _merge(units, per_sample)
    return dataclasses.replace(merged, count=merged.count.expand_as(merged.mean))


def _squares(units: Units, merged: Moments, per_sample: bool) -> tuple[Tensor, Tensor]:
    """Sum one rank's terms of the two squared standard errors."""
    count = units.count[:, None]
    weight = count / merged.count
    offset = units.mean - merged.mean
    spread = units.m2 / count + (0 if per_sample else offset.square())
    excess = spread - merged.m2 / merged.count
    return (weight * offset).square().sum(0), (weight * excess).square().sum(0)


def statistics(units: Units, per_sample: bool = False) -> LayerStatistics:
    """Merge the units of one process, at least one; formulas at the top of this module."""
    merged, _ = merge_statistics({"": units}, {"": per_sample}, lambda vector: vector)
    return merged[""]
