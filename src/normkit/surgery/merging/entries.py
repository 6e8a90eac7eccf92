"""Running statistics in a state dict: which entries they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.nn.stats_spec import stats_spec
from normkit.statistics.layers.find import COUNTER

__all__ = ["StatsEntry", "find_stats_entries"]


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
    """Find running statistics: as the model's layers keep them, others by PyTorch's names.

    >>> layer = nn.BatchNorm1d(2)
    >>> find_stats_entries(layer.state_dict(), None)[0].names
    ('running_mean', 'running_var', 'num_batches_tracked')
    """
    modules = {} if model is None else dict(model.named_modules(remove_duplicate=False))
    known = {entry.mean: entry for entry in _by_layer(state, modules)}
    # Layers that no tool knows, such as a subclass with its own forward, keep statistics too.
    others = [entry for entry in _by_name(state, modules) if entry.mean not in known]
    return [*known.values(), *others]


def _by_name(state: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> Iterator[StatsEntry]:
    for name in state:
        layer, _, attribute = name.rpartition(".")
        prefix = f"{layer}." if layer else ""
        if attribute == "running_mean" and f"{prefix}running_var" in state:
            counter = f"{prefix}{COUNTER}"
            yield StatsEntry(
                layer,
                name,
                f"{prefix}running_var",
                counter if counter in state else None,
                isinstance(modules.get(layer), _InstanceNorm),
            )


def _by_layer(state: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> Iterator[StatsEntry]:
    for name, layer in modules.items():
        prefix = f"{name}." if name else ""
        spec = stats_spec(layer)
        if spec is not None and f"{prefix}{spec.mean}" in state:
            counter = f"{prefix}{COUNTER}"
            yield StatsEntry(
                name,
                f"{prefix}{spec.mean}",
                f"{prefix}{spec.var}",
                counter if counter in state else None,
                spec.per == "sample",
            )
