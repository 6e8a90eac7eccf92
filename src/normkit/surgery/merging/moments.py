"""One layer's running statistics in several state dicts, merged as moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from normkit.core.moments import merge_rows
from normkit.statistics.measuring.check_statistics import check_range
from normkit.surgery.merging.entries import StatsEntry

__all__ = ["merge_stats"]


def merge_stats(
    entry: StatsEntry,
    states: Sequence[Mapping[str, Any]],
    weights: Tensor,
    counts: Tensor | None = None,
) -> dict[str, Tensor]:
    """Merge one layer's mean and variance, each in its type and on its device.

    Statistics that are as a new layer's, mean 0 and variance 1, with a counter of 0, come from no
    batch and count for nothing, unless all are.

    Args:
        weights: (K,), what each state dict weighs.
        counts: (K, banks), how many values each set of statistics comes from, 0 where it was not
            measured; None where that is unknown for all.

    Raises:
        StatisticsError: the merged statistics exceed the type of the first.
    """
    first = states[0]
    shape = first[entry.mean].shape
    # (K, banks, C), a layer without banks having one.
    means, variances = (
        torch.stack([state[name].detach().double().cpu() for state in states])
        .reshape(len(states), -1 if len(shape) > 1 else 1, shape[-1] if shape else 1)
        for name in (entry.mean, entry.var)
    )  # fmt: skip
    banks = means.shape[1]
    share = weights.double()[:, None].expand(-1, banks)
    exact = torch.zeros(banks, dtype=torch.bool)
    if counts is not None:
        # A bank that no part has measured is merged by the weights.
        exact = counts.sum(0) > 0
        share = torch.where(exact, counts.double(), share)
    used = torch.where(_initial(entry, states, means, variances), 0.0, share)
    used = torch.where(used.sum(0) > 0, used, share)[..., None].expand_as(means)
    # Running variances are unbiased: each sum of squares was divided by one less than its count.
    lost = (exact & (not entry.per_sample)).double()[:, None]
    m2 = variances * (used - lost).clamp_min(0)
    merged = merge_rows(used, means, m2)
    total = m2.sum(0) if entry.per_sample else merged.m2
    var = total / (merged.count - lost)
    new = {}
    for name, value in ((entry.mean, merged.mean), (entry.var, var)):
        check_range(value, first[name].dtype, entry.layer)
        new[name] = value.reshape(shape).to(device=first[name].device, dtype=first[name].dtype)
    return new


def _initial(
    entry: StatsEntry, states: Sequence[Mapping[str, Any]], means: Tensor, variances: Tensor
) -> Tensor:
    """Return which statistics are a new layer's, (K, banks)."""
    untouched = ((means == 0) & (variances == 1)).all(-1)
    if entry.counter is None:
        return torch.zeros_like(untouched)
    tracked = torch.stack([state[entry.counter].detach().cpu() for state in states])
    return untouched & (tracked.reshape(len(states), -1) == 0)
