"""Change of a layer's running statistics by a recalibration."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from normkit.statistics.estimates.layer_statistics import LayerStatistics, distance, relative_error

__all__ = ["Shift", "shift_to"]


class Shift(NamedTuple):
    """Change of a layer's running statistics.

    Attributes:
        mean: root mean square over channels of the change of the mean, in deviations.
        variance: typical factor (at least 1) by which the variance changed, up or down: the
            exponential of the root mean square over channels of the logarithm of the ratio.
        error: relative standard error of the new statistics, see ``relative_error``; NaN if
            unknown.
        bias: share of a deviation and of a variance by which the new ones may be off beyond that,
            in every batch alike; an estimate: see :class:`LayerStatistics`.

        ``mean`` and ``variance`` are NaN where the old ones were not finite.
    """

    mean: float
    variance: float
    error: float
    bias: float

    @property
    def size(self) -> float:
        """Size of both changes together, to order tables by."""
        size = self.mean + math.log(self.variance) if self.variance > 0 else math.nan
        return math.inf if math.isnan(size) else size


def shift_to(new: LayerStatistics, before: tuple[Tensor, Tensor], eps: float) -> Shift:
    """Return the change from the mean and variance ``before`` to ``new``."""
    return Shift(*distance(*before, new, eps), relative_error(new, eps), new.bias)
