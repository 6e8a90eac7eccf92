"""Moments that stand in for a model's own for a while, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from normkit.statistics.stats_layers import named_moments

__all__ = ["Exchange", "write"]


class Exchange:
    """Keeps a model's own moments while others stand in their place.

    By name and by value: a model may be moved to another device meanwhile, and saved.

    >>> layer, exchange = nn.BatchNorm1d(1), Exchange()
    >>> exchange.begin(layer)
    >>> _ = layer.running_mean.fill_(3), exchange.made(layer)
    >>> exchange.end(layer)
    >>> layer.running_mean
    tensor([0.])
    """

    def __init__(self) -> None:
        self.own: dict[str, Tensor] = {}
        self._new: dict[str, Tensor] = {}

    def begin(self, model: nn.Module) -> None:
        """Others are about to be written."""
        self.own = _copied(model)

    def made(self, model: nn.Module) -> None:
        """They have been."""
        self._new = _copied(model)

    def end(self, model: nn.Module) -> None:
        """Put the model's own back, except where somebody has written still others since."""
        own, new, self.own, self._new = self.own, self._new, {}, {}
        now = named_moments(model)
        same = {name for name in now if name in new and _same(now[name], new[name])}
        write(model, {name: value for name, value in own.items() if name in same})


def write(model: nn.Module, moments: Mapping[str, Tensor]) -> None:
    """Write moments where the model has some of that name."""
    now = named_moments(model)
    with torch.no_grad():
        for name, value in moments.items():
            if name in now:
                now[name].copy_(value)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_moments(model).items()}


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.detach().to(b.device, b.dtype), b)
