"""Counts of the values that a layer's statistics come from, as the recalibrations say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from normkit.errors import OptionError, message
from normkit.handle import place_name
from normkit.statistics.estimates.layer_statistics import LayerStatistics
from normkit.statistics.results.recalibration import Recalibration
from normkit.surgery.merging.entries import StatsEntry

__all__ = ["averages_over_samples", "measured_counts"]

# What wrappers put before the names of the module in them, which recalibrate looks into.
WRAPPERS = ("module.", "_orig_mod.")


def measured_counts(
    entries: Sequence[StatsEntry],
    states: Sequence[Mapping[str, Any]],
    results: Sequence[Recalibration],
) -> dict[str, Tensor]:
    """Return the counts of values behind each layer's statistics, (K, banks), by the layer.

    0 where a part has not measured them: it was frozen there, or saw nothing of that domain.

    Raises:
        OptionError: a state dict does not hold what its recalibration has measured.
    """
    counts: dict[str, Tensor] = {}
    for entry in entries:
        shape = states[0][entry.mean].shape
        rows = [None] if len(shape) < 2 else list(range(shape[0]))
        counts[entry.layer] = torch.tensor(
            [
                [_count(entry, row, state, result, number) for row in rows]
                for number, (state, result) in enumerate(zip(states, results, strict=True), start=1)
            ],
            dtype=torch.float64,
        )
    for number in range(len(states)):
        if not any(bool((each[number] > 0).any()) for each in counts.values()):
            raise _another(number + 1, "none of its layers")
    return counts


def averages_over_samples(entry: StatsEntry, results: Sequence[Recalibration]) -> bool:
    """Return True if the recalibrations know the layer as one that averages over samples."""
    names = _names(entry.layer, None)
    return any(name in one.per_sample for one in results for name in names)


def _count(
    entry: StatsEntry,
    row: int | None,
    state: Mapping[str, Any],
    result: Recalibration,
    number: int,
) -> int:
    mean, var = (
        tensor if row is None else tensor[row]
        for tensor in (state[entry.mean].detach().cpu(), state[entry.var].detach().cpu())
    )
    for name in _names(entry.layer, row):
        if (one := result.layers.get(name)) is not None:
            if not _is(one, mean, var):
                raise _another(number, f"other statistics in {place_name(entry.layer)}")
            return one.count
    # A layer in several places is measured by its first name.
    return next((one.count for one in result.layers.values() if _is(one, mean, var)), 0)


def _names(layer: str, row: int | None) -> list[str]:
    """List the names that recalibrate may have for a layer, which may be within wrappers."""
    bank = "" if row is None else f"[{row}]"
    names, rest = [layer + bank], f"{layer}."
    while (wrapper := next((w for w in WRAPPERS if rest.startswith(w)), None)) is not None:
        rest = rest[len(wrapper) :]
        names.append(rest.removesuffix(".") + bank)
    return names


def _is(one: LayerStatistics, mean: Tensor, var: Tensor) -> bool:
    """Return True if a state dict's mean and variance are those measured, rounded to their type."""
    pairs = ((one.mean, mean), (one.variance, var))
    return all(
        a.shape == b.shape
        and torch.allclose(a.double(), b.double(), rtol=4 * torch.finfo(b.dtype).eps, atol=1e-30)
        for a, b in pairs
    )


def _another(number: int, received: str) -> OptionError:
    return OptionError(
        message(
            f"state dict {number} to hold the statistics that its recalibration measured",
            received,
            "pass the recalibrations in the state dicts' order, and state dicts from before undo()",
        )
    )
