"""Moments of a layer that one pass calls several times, each call apart from the others."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from normkit.core.moments import Moments
from normkit.statistics.estimates.estimate import Estimate

__all__ = ["MAX_CALLS", "CallsEstimate"]

MAX_CALLS = 16
"""Calls that are kept apart in one pass; the last of them stands for all later ones."""


class CallsEstimate(Estimate):
    """Estimate over all calls that keeps the calls apart too, once a batch makes several.

    Attributes:
        calls: an estimate for the first, second, … call of a pass; empty where no pass has made
            more than one.

    >>> import torch
    >>> estimate = CallsEstimate(1)
    >>> one, two = (Moments.of(torch.full((2, 1), v, dtype=torch.float64), 0) for v in (1.0, 3.0))
    >>> estimate.add(one)
    >>> estimate.add(one, two)
    >>> [int(call.units().count.sum()) for call in estimate.calls]
    [4, 2]
    """

    def __init__(self, channels: int, per_sample: bool = False) -> None:
        super().__init__(channels, per_sample)
        self._channels = channels
        self.calls: list[Estimate] = []

    def add(self, *calls: Moments | None) -> None:
        """Add one batch: the moments of each call, None for one without a value."""
        if len(calls) > 1 and not self.calls:
            # Every batch so far has made one call: what they have in common is the first call's.
            first = Estimate(self._channels, self.per_sample)
            vars(first).update({key: copy.copy(vars(self)[key]) for key in vars(first)})
            self.calls.append(first)
        if self.calls:
            parts = [[one] for one in calls[: MAX_CALLS - 1]]
            if len(calls) >= MAX_CALLS:
                parts.append(list(calls[MAX_CALLS - 1 :]))
            while len(self.calls) < len(parts):
                self.calls.append(Estimate(self._channels, self.per_sample))
            for estimate, part in zip(self.calls, parts, strict=False):
                _add(estimate, part)
        present = [one for one in calls if one is not None]
        if present:
            super().add(*present)


def _add(estimate: Estimate, calls: Sequence[Moments | None]) -> None:
    present = [one for one in calls if one is not None]
    if present:
        estimate.add(*present)
