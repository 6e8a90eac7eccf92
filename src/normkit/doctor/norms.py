"""Normalization layers of a model, whatever they keep: what the rules look at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.nn.freezing import FrozenMixin, is_constant
from normkit.nn.kinds import Kind, kind_of
from normkit.nn.stats_spec import running_stats, stats_spec

__all__ = ["Norm", "find_norms", "have_trained"]


class Norm(NamedTuple):
    """Normalization layer.

    Attributes:
        name: its first name in the model.
        layer: the module.
        kind: what its mean and variance are taken over.
        places: all its names in the model; several where it stands in several places.
    """

    name: str
    layer: nn.Module
    kind: Kind
    places: tuple[str, ...]

    @property
    def stats(self) -> tuple[Tensor, Tensor] | None:
        """The running mean and variance that it keeps, or None."""
        return running_stats(self.layer)

    @property
    def frozen(self) -> bool:
        """True if its statistics are constants on purpose: by freezing, or by its class."""
        return isinstance(self.layer, FrozenMixin) or is_constant(self.layer)

    @property
    def momentum(self) -> float | None:
        """Share of the statistics that a batch replaces, where the layer has such a number."""
        spec = stats_spec(self.layer)
        usual = isinstance(self.layer, (_BatchNorm, _InstanceNorm))
        name = "momentum" if usual else spec.momentum if spec is not None else None
        value = getattr(self.layer, name, None) if name else None
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def weight(self) -> Tensor | None:
        """γ, or None."""
        value = getattr(self.layer, "weight", None)
        return value if isinstance(value, Tensor) else None

    @property
    def bias(self) -> Tensor | None:
        """β, or None."""
        value = getattr(self.layer, "bias", None)
        return value if isinstance(value, Tensor) else None


def find_norms(model: nn.Module) -> tuple[Norm, ...]:
    """Find the normalization layers of a model, in its order.

    >>> [one.name for one in find_norms(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))]
    ['1']
    """
    places: dict[int, list[str]] = {}
    layers: dict[int, tuple[nn.Module, Kind]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        kind = kind_of(module)
        if kind is not None:
            layers[id(module)] = module, kind
            places.setdefault(id(module), []).append(name)
    return tuple(Norm(names[0], *layers[key], tuple(names)) for key, names in places.items())


def have_trained(norms: Iterable[Norm]) -> bool:
    """Return True if some γ or β is not as layers are made: all 1 or all 0.

    >>> have_trained(find_norms(nn.BatchNorm1d(2)))
    False
    """
    for one in norms:
        for tensor in (one.weight, one.bias):
            if tensor is not None and tensor.numel() > 1 and not tensor.is_meta:
                values = tensor.detach().float()
                if bool((values != values.flatten()[0]).any()):
                    return True
    return False
