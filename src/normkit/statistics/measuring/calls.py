"""Layers that one pass calls several times: each call's moments, apart from the others'.

A shared head of a detector, the two halves of a siamese network or the steps of a recurrent one
call one layer on several inputs. In training each call normalizes by its own batch statistics; in
evaluation all of them by one set. Where the inputs differ, no set fits them all.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from normkit.core.moments import Moments
from normkit.statistics.estimates.estimate import Estimate, statistics
from normkit.statistics.estimates.few_batches import with_errors
from normkit.statistics.estimates.gaps import Gap, gap_between
from normkit.statistics.estimates.layer_statistics import LayerStatistics
from normkit.statistics.layers.find import NormLayer, layers_by_bank
from normkit.statistics.printing.tables import format_deviations, format_factor, layer_label

__all__ = [
    "MAX_CALLS",
    "CallsEstimate",
    "SharedLayer",
    "call_gaps",
    "call_statistics",
    "describe_calls",
    "shared_layers",
]

MAX_CALLS = 16
"""Calls that are kept apart in one pass; the last of them stands for all later ones."""


class CallsEstimate(Estimate):
    """An estimate over all calls that keeps the calls apart too, once a batch makes several.

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


class SharedLayer(NamedTuple):
    """A layer that one pass calls several times, on inputs that no one mean and variance fit.

    Attributes:
        name: of the layer; of its bank, for one with several domains.
        type: its class.
        calls: by number, from 1, the :class:`Gap` between its running statistics and a call's
            input.
    """

    name: str
    type: type
    calls: Mapping[int, Gap]

    def __str__(self) -> str:
        return (
            f"{layer_label(self.name, self.type)} is called several times in a pass, on inputs of "
            f"different statistics; its running ones are off by {describe_calls(self.calls)}. No "
            "single mean and variance fits them: give each call a layer of its own, or one layer "
            "a domain for each (normkit.DomainBatchNorm2d), or normalize without running "
            "statistics (normkit.GroupNorm)"
        )


def describe_calls(calls: Mapping[int, Gap]) -> str:
    """Describe the calls whose gap matters; all of them where none does.

    >>> describe_calls({1: Gap(0.01, 1.0, 0.9, 1.1), 2: Gap(0.5, 4.0, 21.0, 14.0)})
    '0.50 σ and ×÷ 4.00 in call 2'
    """
    mattering = {number: gap for number, gap in calls.items() if gap.matters} or calls
    return ", ".join(
        f"{format_deviations(gap.mean)} and {format_factor(gap.variance)} in call {number}"
        + (" and later ones" if number == MAX_CALLS else "")
        for number, gap in mattering.items()
    )


def call_statistics(estimate: Estimate, samples: int, eps: float) -> dict[int, LayerStatistics]:
    """Statistics of each call of a pass, by number; none of a layer that no pass calls twice."""
    calls = estimate.calls if isinstance(estimate, CallsEstimate) else []
    every = {number: (one.units(), one.per_sample) for number, one in enumerate(calls, 1)}
    # One value has no variance.
    return {
        number: with_errors(statistics(units, per_sample), len(units.count), samples, eps)
        for number, (units, per_sample) in every.items()
        if float(units.count.sum()) > 1
    }


def shared_layers(
    estimates: Mapping[str, Estimate],
    layers: Sequence[NormLayer],
    samples: int,
    running: Mapping[str, LayerStatistics] | None = None,
) -> list[SharedLayer]:
    """Find the layers whose calls within one pass have inputs that differ.

    Args:
        estimates: by layer.
        layers: those observed.
        samples: how many there were.
        running: statistics to tell the calls' distance from; those of all calls together if None.
    """
    shared = []
    for name, one in layers_by_bank(layers).items():
        if name not in estimates:
            continue
        calls = call_statistics(estimates[name], samples, one.eps)
        if not calls:
            continue
        pooled = statistics(estimates[name].units(), one.per_sample)
        if any(gap.matters for gap in call_gaps(pooled, calls, one.eps).values()):
            gaps = call_gaps(running[name] if running else pooled, calls, one.eps)
            shared.append(SharedLayer(name, type(one.layer), gaps))
    return shared


def call_gaps(
    running: LayerStatistics, calls: Mapping[int, LayerStatistics], eps: float
) -> dict[int, Gap]:
    """Compare running statistics with those of each call."""
    return {number: gap_between(running, call, eps) for number, call in calls.items()}
