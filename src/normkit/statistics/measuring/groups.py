"""Standard errors from groups of batches, which hold with batches of any size, even of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from normkit.statistics.estimates.estimate import Units, statistics
from normkit.statistics.estimates.layer_statistics import LayerStatistics, relative_error
from normkit.statistics.layers.find import NormLayer, layers_by_bank
from normkit.statistics.measuring.calls import CallsEstimate
from normkit.statistics.measuring.passes import Passes

__all__ = ["group_errors"]

GROUP = 8
"""Smallest number of samples in a group of batches that normalizes itself for standard errors."""

SETTLED = 0.1
"""Passes for standard errors end when one changes none by more than this share, about as well as
32 groups know it."""

MAX_GROUPS = 32
"""Groups of batches that each rank makes for standard errors, known to 1 / √(2 · 31) = 13 %."""


def group_errors(
    layers: Sequence[NormLayer], passes: Passes, result: Mapping[str, LayerStatistics]
) -> dict[str, LayerStatistics]:
    """Return statistics whose standard errors hold with batches of any size, even of one.

    The batches are split into groups of neighbours, large enough to normalize themselves. Each
    group goes through the layer-by-layer passes by itself, all in the same passes, from ``result``
    on; how far the groups then differ from each other is the error (random groups: Wolter 2007,
    *Introduction to Variance Estimation*, chapter 2). NaN where there are too few samples for two.
    """
    by_bank = layers_by_bank(layers)
    groups = [dict(result) for _ in range(_group_number(passes))]
    before: dict[str, float] = {}
    merged = dict(result)
    for _ in range(len(layers) + 1):
        groups, merged = _group_pass(passes, groups)
        errors = {name: relative_error(one, by_bank[name].eps) for name, one in merged.items()}
        if all(_near(error, before.get(name, math.inf)) for name, error in errors.items()):
            break
        before = errors
    if passes.samples < GROUP * max(passes.units.values(), default=0):
        nothing = {name: torch.full_like(one.mean, math.nan) for name, one in merged.items()}
        return {n: one._replace(mean_standard_error=nothing[n], variance_standard_error=nothing[n])
                for n, one in merged.items()}  # fmt: skip
    return merged


def _group_number(passes: Passes) -> int:
    """Return into how many groups to split this rank's batches."""
    return max(1, min(MAX_GROUPS, passes.own_batches, passes.own_samples // GROUP))


def _group_pass(
    passes: Passes, groups: Sequence[Mapping[str, LayerStatistics]]
) -> tuple[list[dict[str, LayerStatistics]], dict[str, LayerStatistics]]:
    """Go over the batches of the first pass in groups of neighbours.

    Args:
        groups: by group of this rank, what its batches are normalized with.

    Returns:
        The statistics by group, and those of all groups of all ranks, whose units they are.
    """
    estimates: list[dict[str, CallsEstimate]] = [{} for _ in groups]
    done = 0
    passes.observer.start({})  # counts batches anew

    def run(batch: Any, counts: bool) -> int:
        nonlocal done
        index = min(done * len(groups) // max(passes.own_batches, 1), len(groups) - 1)
        passes.observer.start(groups[index], estimates[index])
        done += counts
        return passes.run(batch, counts)

    passes.go_over(run)
    new = []
    for fixed, observed in zip(groups, estimates, strict=True):
        of_group = {n: statistics(one.units(), one.per_sample) for n, one in observed.items()}
        # A single value has no variance.
        of_group = {n: s for n, s in of_group.items() if bool(s.variance.isfinite().all())}
        new.append({**fixed, **of_group})
    units = {}
    for name in layers_by_bank(passes.observer.layers):
        parts = [observed[name].whole() for observed in estimates if name in observed]
        if parts:
            units[name] = Units(*(torch.cat(column) for column in zip(*parts, strict=True)))
    return new, passes.merge_units(units, {})


def _near(error: float, before: float) -> bool:
    return math.isnan(error) or abs(error - before) <= SETTLED * error
