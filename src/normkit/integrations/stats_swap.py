"""Other running statistics in place of a model's own for a while, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from normkit.statistics.layers.find import named_stats
from normkit.statistics.layers.preserve import overwrite

__all__ = ["StatsSwap", "write_stats"]


class StatsSwap:
    """Saves a model's running statistics while others replace them.

    By name and by value, as the model may be moved to another device meanwhile, or saved.

    >>> layer, swap = nn.BatchNorm1d(1), StatsSwap()
    >>> swap.save(layer)
    >>> _ = layer.running_mean.fill_(3), swap.applied(layer)
    >>> swap.restore(layer)
    >>> layer.running_mean
    tensor([0.])
    """

    def __init__(self) -> None:
        self.saved: dict[str, Tensor] = {}
        self._applied: dict[str, Tensor] = {}

    def save(self, model: nn.Module) -> None:
        """Save the statistics, before others are written."""
        self.saved = _copy_stats(model)

    def applied(self, model: nn.Module) -> None:
        """Note which statistics have been written."""
        self._applied = _copy_stats(model)

    def restore(self, model: nn.Module) -> None:
        """Restore the saved statistics, except where they have been changed again since."""
        saved, applied, self.saved, self._applied = self.saved, self._applied, {}, {}
        current = named_stats(model)
        unchanged = {n for n in current if n in applied and _equal(current[n], applied[n])}
        write_stats(model, {name: value for name, value in saved.items() if name in unchanged})


def write_stats(model: nn.Module, stats: Mapping[str, Tensor]) -> None:
    """Write statistics where the model has some of that name."""
    current = named_stats(model)
    for name, value in stats.items():
        if name in current:
            overwrite(current[name], value)


def _copy_stats(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_stats(model).items()}


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.detach().to(b.device, b.dtype), b)
