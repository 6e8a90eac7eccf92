"""Bias of statistics behind layers that normalized by batches of few samples.

No difference between units shows the *bias*: where layers before normalize by each batch's own
moments, a batch of n samples loses one part in n of what varies between samples, in every batch
alike. :class:`Tally` gathers 1/n, weighed by values, so that a small last batch counts for as
little as it contributes. The input of later layers is off by 0.05/n to 2.7/n (six networks, batches
of 1 to 64: docs/recalibration.md), the more the longer the tails and the deeper:
:func:`state_bias` estimates it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from normkit.statistics.estimates.layer_statistics import LayerStatistics, relative_error

__all__ = ["LARGE_BIAS", "MAX_BIAS", "Tally", "state_bias"]

MAX_BIAS = 0.1
"""Largest 1/n of a single pass: batches of ten samples. To first order in it, the standard errors
are right, and measured biases are mostly below it."""

LARGE_BIAS = 0.6
"""Largest bias that a single pass is left with."""

ONE_BATCH = 2.7
"""Bias times n, the largest of docs/recalibration.md, where one batch shows no spread."""


class Tally(NamedTuple):
    """Calls of a layer, and its values, each times the 1/n that the layers before it lose."""

    calls: int = 0
    lost: float = 0.0

    def plus(self, other: Tally) -> Tally:
        """Add another tally of the same layer."""
        return Tally(self.calls + other.calls, self.lost + other.lost)


def state_bias(
    statistics: Mapping[str, LayerStatistics], eps: Mapping[str, float]
) -> dict[str, LayerStatistics]:
    """Estimate the bias of a pass in which batches normalized themselves; ``statistics`` by calls.

    The squared relative standard error of a single batch is 2/n for independent normal values, more
    with longer tails or where batches come in an order, less where a sample has many values. The
    largest of: 1/n; this figure of this layer, or of one before; half the sum of the figures of
    those before, as losses add up with depth. ``ONE_BATCH`` / n where there is one batch, which
    shows no such figure. An estimate and no bound. Behind no layer it is 0.
    """
    stated, largest, total = {}, 0.0, 0.0
    for name, one in statistics.items():
        spread = one.batches * relative_error(one, eps[name]) ** 2
        known = not math.isnan(spread)
        largest = max(largest, spread if known else ONE_BATCH * one.bias)
        stated[name] = one._replace(bias=max(one.bias, largest, total / 2) if one.bias else 0.0)
        total += spread if known else 0.0
    return stated
