"""Values of two outputs: how far they differ, relative to how far they vary over the data.

A *feature* has one mean, over all samples and positions. Features lie along axis 1, as PyTorch's
channels do; along the last axis where labels say that the classes do, or where axis 1 has another
length from batch to batch, as tokens have; where neither stays the same, or there is only the
batch axis, all values are one feature. With :math:`a` the output with batch statistics and
:math:`b` that with running ones,

.. math::
    \\text{difference} = \\sqrt{\\frac{\\sum (a - b)^2}{\\sum (a - \\bar a)^2}},

summed over everything and merged in float64, so the batches make no difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from normkit.core.moments import Moments, merge, merge_rows

__all__ = ["ValueSums", "parts", "wide"]

MAX_VALUES = 2**22
"""Values of an output that are converted to float64 at a time."""

SEVERAL = 8
"""Units of rounding by which equal results differ that were computed in another order."""

WIDEST = (torch.float64, torch.complex128)


def parts(values: Tensor) -> Iterator[slice]:
    """Slice the samples of ``values`` so that each slice has about ``MAX_VALUES`` values."""
    step = max(1, MAX_VALUES * len(values) // max(values.numel(), 1))
    for start in range(0, len(values), step):
        yield slice(start, start + step)


def wide(values: Tensor) -> Tensor:
    """Convert to float64, complex values to pairs along a last axis."""
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    # Apple's GPUs have no float64.
    return (values.cpu() if values.device.type == "mps" else values).double()


class ValueSums:
    """Sums of squared differences, and moments by feature for each axis that may hold features.

    Attributes:
        batches: number of batches that were added.
    """

    def __init__(self) -> None:
        self.batches = 0
        self._squares = 0.0
        self._by_axis: dict[int, Moments | None] = {1: None, -1: None}
        self._all: Moments | None = None
        self._sizes: dict[int, set[int]] = {1: set(), -1: set()}
        self._not_finite = [0, 0]  # values that one of the two modes alone makes finite
        self._left_out = 0
        self._rounding = 0.0  # of the values, relative

    def add(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> None:
        """Add a part of the values of a batch, in float64, that the model returned in ``dtype``."""
        if dtype.is_floating_point or dtype.is_complex:
            eps = torch.finfo(dtype).eps
            # What was computed in float32 is off by several units, also where it was rounded later.
            several = SEVERAL * (eps if dtype in WIDEST else torch.finfo(torch.float32).eps)
            self._rounding = max(self._rounding, eps, several)
        usable = a.isfinite() & b.isfinite()
        keep = None
        if not bool(usable.all()):
            # A mask's infinities are the same in both modes, and tell nothing.
            masked = ~usable & ((a == b) | (a.isnan() & b.isnan()))
            self._left_out += int(masked.sum())
            for i, one in enumerate((a, b)):
                self._not_finite[i] += int((~one.isfinite() & ~masked).sum())
            keep = usable
            a, b = (torch.where(usable, one, 0.0) for one in (a, b))
        self._squares += float((a - b).square().sum())
        self._all = _merged(self._all, _merge_features(_moments(a, keep, 1)))
        for axis in (1, -1):
            if a.dim() < (2 if axis == 1 else 3):
                self._sizes[axis].add(0)
                continue
            self._sizes[axis].add(a.shape[axis])
            if len(self._sizes[axis]) == 1:
                self._by_axis[axis] = _merged(self._by_axis[axis], _moments(a, keep, axis))

    def difference(self, axis: int | None) -> tuple[float, str]:
        """Return the relative difference and what to add to it, such as why it is NaN.

        Args:
            axis: of the features, if known.
        """
        if self._all is None:
            return math.nan, "the model returned no tensor to compare"
        for count, side in zip(self._not_finite, ("batch", "running"), strict=True):
            if count:
                return math.nan, f"{count:,} values are not finite with {side} statistics"
        note = f"{self._left_out:,} values are not finite in either mode" if self._left_out else ""
        if self._squares == 0.0:
            return 0.0, note
        by_feature = self._by_feature(axis)
        size = by_feature.count * by_feature.mean.square()
        if bool((by_feature.m2 > self._rounding**2 * size).any()):
            return math.sqrt(self._squares / float(by_feature.m2.sum())), note
        if float(by_feature.count.max()) < 2:
            return math.nan, "a single sample has no deviation"
        return math.nan, "the output with batch statistics is constant, but for rounding"

    def _by_feature(self, axis: int | None) -> Moments:
        for one in (1, -1) if axis is None else (axis, 1, -1):
            moments = self._by_axis[one]
            if moments is not None and len(self._sizes[one]) == 1:
                return moments
        assert self._all is not None
        return self._all


def _moments(a: Tensor, keep: Tensor | None, axis: int) -> Moments:
    """Moments of each feature, (C,)."""
    a = a.unsqueeze(-1) if a.dim() < 2 else a
    keep = keep if keep is None or keep.dim() > 1 else keep.unsqueeze(-1)
    dims = tuple(d for d in range(a.dim()) if d != axis % a.dim())
    if keep is None:
        one = Moments.of(a, dims)
        return Moments(one.count.expand_as(one.mean), one.mean, one.m2)
    count = keep.sum(dims).double()
    mean = a.sum(dims, keepdim=True) / keep.sum(dims, keepdim=True).clamp_min(1)
    m2 = torch.where(keep, a - mean, 0.0).square().sum(dims)
    return Moments(count, mean.squeeze(dims), m2)


def _merge_features(one: Moments) -> Moments:
    """Merge features into one."""
    return merge_rows(*(column[:, None] for column in (one.count, one.mean, one.m2)))


def _merged(before: Moments | None, after: Moments) -> Moments:
    return after if before is None else merge([before, after])
