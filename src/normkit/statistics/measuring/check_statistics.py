"""Refuse statistics that must not be written or compared: undefined, not finite, too large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from normkit.errors import NonFiniteError, StatisticsError, message
from normkit.handle import place_name
from normkit.nn.stats_range import exceeds
from normkit.statistics.estimates.layer_statistics import LayerStatistics
from normkit.statistics.layers.find import NormLayer, layers_by_bank

__all__ = ["check_measurement", "check_range", "check_statistics"]


def check_statistics(
    statistics: Mapping[str, LayerStatistics], layers: Sequence[NormLayer]
) -> None:
    """Raise if statistics are not finite or not defined.

    Raises:
        StatisticsError: a variance of a single value.
        NonFiniteError: not finite, or too large for the layer's own tensors.
    """
    by_bank = layers_by_bank(layers)
    for name, one in statistics.items():
        where = place_name(name)
        if one.count < 2 and not by_bank[name].per_sample:
            raise StatisticsError(
                message(
                    "at least two values per channel for a variance",
                    f"one, at {where}",
                    "pass more samples",
                )
            )
        if not bool((one.mean.isfinite() & one.variance.isfinite()).all()):
            raise NonFiniteError(
                message(
                    "finite values",
                    f"NaN or infinity in the input of {where}",
                    "look for them in the batches and in the weights before that layer",
                )
            )
        for value, tensor in zip((one.mean, one.variance), by_bank[name].tensors, strict=True):
            check_range(value, tensor.dtype, name)


def check_range(values: Tensor, dtype: torch.dtype, name: str) -> None:
    """Raise if a mean or variance is too large for the type that the layer ``name`` keeps it in.

    Raises:
        NonFiniteError: a finite value that is not finite in ``dtype``.
    """
    if exceeds(values, dtype):
        wider = "float32: layer.float()" if dtype == torch.float16 else "float64: layer.double()"
        raise NonFiniteError(
            message(
                "moments within the range of the type a layer keeps them in",
                f"{float(values.abs().max()):.3g} for {dtype}, at {place_name(name)}",
                f"keep the normalization layers in {wider}",
            )
        )


def check_measurement(
    layers: Sequence[NormLayer], statistics: dict[str, LayerStatistics]
) -> dict[str, LayerStatistics]:
    """Return ``statistics``, once checked.

    Raises:
        StatisticsError: there are none, or some are not finite or not defined.
    """
    if not statistics:
        raise StatisticsError(
            message(
                "at least one batch that reaches a layer with running statistics",
                "none",
                "pass non-empty batches; an iterator can be used only once",
            )
        )
    check_statistics(statistics, layers)
    return statistics
