"""Running statistics in a state dict: which entries they are, and several of them merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normkit.core.moments import merge_rows
from normkit.nn.stats_spec import stats_spec
from normkit.statistics.layers.find import COUNTER, batch_counter
from normkit.statistics.measuring.check_statistics import check_range

__all__ = ["StatsEntry", "find_stats_entries", "merge_stats"]


class StatsEntry(NamedTuple):
    """Names of a layer's running statistics in a state dict.

    Attributes:
        layer: the layer's name.
        mean, var: entries of means and variances, (C,), or (banks, C).
        counter: entry of the count of batches, or None.
        per_sample: True if the variance is an average over samples, so that nothing lies between.
    """

    layer: str
    mean: str
    var: str
    counter: str | None
    per_sample: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All entries."""
        return tuple(filter(None, (self.mean, self.var, self.counter)))


def find_stats_entries(state: Mapping[str, Any], model: nn.Module | None) -> list[StatsEntry]:
    """Find running statistics: as the model's layers keep them, or by PyTorch's names.

    >>> layer = nn.BatchNorm1d(2)
    >>> find_stats_entries(layer.state_dict(), None)[0].names
    ('running_mean', 'running_var', 'num_batches_tracked')
    """
    return [*(_by_name(state) if model is None else _by_layer(state, model))]


def _by_name(state: Mapping[str, Any]) -> Iterator[StatsEntry]:
    for name in state:
        layer, _, attribute = name.rpartition(".")
        prefix = f"{layer}." if layer else ""
        if attribute == "running_mean" and f"{prefix}running_var" in state:
            counter = f"{prefix}{COUNTER}"
            yield StatsEntry(
                layer, name, f"{prefix}running_var", counter if counter in state else None
            )


def _by_layer(state: Mapping[str, Any], model: nn.Module) -> Iterator[StatsEntry]:
    for name, layer in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        spec = stats_spec(layer)
        if spec is not None and f"{prefix}{spec.mean}" in state:
            counter = f"{prefix}{COUNTER}"
            # Instance normalization has a counter that nothing depends on; it is one all the same.
            counts = batch_counter(layer) is not None or counter in state
            yield StatsEntry(
                name,
                f"{prefix}{spec.mean}",
                f"{prefix}{spec.var}",
                counter if counts and counter in state else None,
                spec.per == "sample",
            )


def merge_stats(
    entry: StatsEntry,
    states: Sequence[Mapping[str, Any]],
    weights: Tensor,
    counts: Tensor | None,
) -> dict[str, Tensor]:
    """Merge one layer's mean and variance, each in its type and on its device.

    Statistics that are as a new layer's, mean 0 and variance 1, with a counter of 0, come from no
    batch and count for nothing, unless all are.

    Args:
        weights: (K,), what each state dict weighs.
        counts: (K,) or (K, banks), how many values each variance was divided by, plus 1; None
            where that is unknown.

    Raises:
        StatisticsError: the merged statistics exceed the type of the first.
    """
    first = states[0]
    means, variances = (
        torch.stack([state[name].detach().double().cpu() for state in states])
        for name in (entry.mean, entry.var)
    )
    share = weights if counts is None else counts.double()
    share = share.reshape(*share.shape, *[1] * (means.dim() - share.dim())).expand_as(means)
    known = ~_initial(entry, states, means, variances)
    used = torch.where(known, share, 0.0)
    used = torch.where((used.sum(0) > 0).expand_as(used), used, share)
    exact = counts is not None and not entry.per_sample
    # Running variances are unbiased: each sum of squares was divided by one less than its count.
    m2 = variances * ((used - 1).clamp_min(0) if exact else used)
    merged = merge_rows(used, means, m2)
    if entry.per_sample:
        var = m2.sum(0) / merged.count
    else:
        var = merged.m2 / (merged.count - 1 if exact else merged.count)
    new = {}
    for name, value in ((entry.mean, merged.mean), (entry.var, var)):
        check_range(value, first[name].dtype, entry.layer)
        new[name] = value.to(device=first[name].device, dtype=first[name].dtype)
    return new


def _initial(
    entry: StatsEntry, states: Sequence[Mapping[str, Any]], means: Tensor, variances: Tensor
) -> Tensor:
    """Return which statistics are a new layer's, bank by bank, in the shape of ``means``."""
    if entry.counter is None:
        return torch.zeros_like(means, dtype=torch.bool)
    tracked = torch.stack([state[entry.counter].detach().cpu() for state in states])
    tracked = tracked.reshape(*tracked.shape, *[1] * (means.dim() - tracked.dim()))
    untouched = ((means == 0) & (variances == 1)).all(-1, keepdim=True)
    return (untouched & (tracked == 0)).expand_as(means)
