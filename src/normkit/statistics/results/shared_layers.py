"""Layers that one pass calls several times, on inputs that no one mean and variance fit.

A shared head of a detector, the two halves of a siamese network or the steps of a recurrent one
call one layer on several inputs. In training each call normalizes by its own batch statistics; in
evaluation all of them by one set. Where the inputs differ, no set fits them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from normkit.statistics.estimates.estimate import Estimate, statistics
from normkit.statistics.estimates.few_batches import moderate_errors
from normkit.statistics.estimates.gaps import Gap, gap_between
from normkit.statistics.estimates.layer_statistics import LayerStatistics
from normkit.statistics.layers.find import NormLayer, layers_by_bank
from normkit.statistics.measuring.calls import MAX_CALLS, CallsEstimate
from normkit.statistics.printing.tables import format_deviations, format_factor, layer_label

__all__ = ["SharedLayer", "call_gaps", "call_statistics", "describe_calls", "shared_layers"]


class SharedLayer(NamedTuple):
    """Layer that one pass calls several times, on inputs that no one mean and variance fit.

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
        number: moderate_errors(statistics(units, per_sample), len(units.count), samples, eps)
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
