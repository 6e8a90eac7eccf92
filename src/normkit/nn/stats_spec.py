"""Which layers keep running statistics, and how: one registry for every tool."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.nn.domainbatchnorm import Domains

__all__ = ["StatsSpec", "keeps_stats", "running_stats", "stats_spec"]


def _unchanged(layer: Any, x: Tensor) -> Tensor:
    return x


def _no_bank(layer: Any) -> int | None:
    return None


@dataclasses.dataclass(frozen=True)
class StatsSpec:
    """Description of a layer's running statistics.

    In evaluation mode the layer normalizes with two of its tensors, a mean and a variance per
    channel, by any formula.

    Args:
        mean: name of the layer's tensor of means, (C,), or (banks, C).
        var: name of its tensor of variances, of the same shape.
        per: "batch": moments of all values of a channel, as batch normalization keeps them;
            "sample": averages over samples of each sample's own moments, as instance
            normalization does.
        values: function of the layer and its input that returns the values to take moments of,
            (N, C, \\*). For layers with channels on another axis.
        bank: function of the layer that returns the row of its tensors that this call uses; None
            where they have no rows.
    """

    mean: str = "running_mean"
    var: str = "running_var"
    per: Literal["batch", "sample"] = "batch"
    values: Callable[[Any, Tensor], Tensor] = _unchanged
    bank: Callable[[Any], int | None] = _no_bank


@functools.singledispatch
def stats_spec(layer: nn.Module) -> StatsSpec | None:
    """Return how ``layer`` keeps running statistics, or None if it keeps none.

    A generic function (:func:`functools.singledispatch`): three lines register a third-party layer
    and its subclasses, which are then recalibrated, measured and frozen like the others.

    >>> import torch
    >>> class ChannelsLastNorm(nn.Module):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self.register_buffer("mu", torch.zeros(channels))
    ...         self.register_buffer("v", torch.ones(channels))
    ...     def forward(self, x):     # (N, H, W, C)
    ...         return (x - self.mu) / self.v.sqrt()
    >>> @stats_spec.register(ChannelsLastNorm)
    ... def _(layer):
    ...     return StatsSpec("mu", "v", values=lambda layer, x: x.movedim(-1, 1))
    >>> stats_spec(ChannelsLastNorm(3)).mean
    'mu'
    """
    return None


@stats_spec.register
def _(layer: _BatchNorm) -> StatsSpec | None:
    if layer.running_mean is None or layer.running_var is None:
        return None
    return StatsSpec()


def _with_batch_axis(layer: Any, x: Tensor) -> Tensor:
    return x.unsqueeze(0) if x.dim() == layer._get_no_batch_dim() else x


@stats_spec.register
def _(layer: _InstanceNorm) -> StatsSpec | None:
    if not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        return None
    return StatsSpec(per="sample", values=_with_batch_axis)


@stats_spec.register
def _(layer: Domains) -> StatsSpec | None:
    return None if layer.running_mean is None else StatsSpec(bank=Domains.chosen)


def running_stats(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return the mean and variance that ``layer`` keeps for evaluation mode, or None.

    By its :class:`StatsSpec`; otherwise buffers with PyTorch's names count, as in a scripted layer.
    """
    spec = stats_spec(layer)
    if spec is not None:
        return getattr(layer, spec.mean), getattr(layer, spec.var)
    buffers = layer._buffers  # no dict in a scripted module
    both = [buffers[name] for name in ("running_mean", "running_var") if name in buffers]
    mean, var = both if len(both) == 2 else (None, None)
    return None if mean is None or var is None else (mean, var)


def keeps_stats(layer: nn.Module) -> bool:
    """Return whether ``layer`` keeps a mean and a variance for evaluation mode.

    >>> keeps_stats(nn.BatchNorm2d(3)), keeps_stats(nn.InstanceNorm2d(3)), keeps_stats(nn.ReLU())
    (True, False, False)
    """
    return running_stats(layer) is not None
