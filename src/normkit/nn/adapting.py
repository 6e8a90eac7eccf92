"""Let a layer normalize its input by other moments than those it remembers, while it is adapted.

An adapted layer has a subclass of its class, made by :func:`adapted_class`, which normalizes the
input and gives it to the layer with mean 0 and variance 1 in place of the remembered ones. So γ, β,
activation and residual stay the layer's own, gradients pass through the moments, and the remembered
tensors are not written. Test for it with ``isinstance(layer, AdaptedMixin)``.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from normkit.nn.stats_spec import StatsSpec

__all__ = ["ADAPTED", "AdaptedMixin", "Normalizer", "adapted_class", "tensor_table"]

ADAPTED = "adapted to its input by normkit.adapt: undo that first"
"""Reason for which other tools skip a layer."""

# The adapted subclass of each class, made once.
_ADAPTED: dict[type[nn.Module], type[nn.Module]] = {}


class Normalizer(Protocol):
    """Object that normalizes the input of one adapted layer."""

    spec: StatsSpec

    def normalize(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return ``x`` as the layer, with mean 0 and variance 1, is to take it."""
        ...


class AdaptedMixin(nn.Module):
    """Mixin that :func:`adapted_class` puts before a layer's class.

    The layer stays in evaluation mode, whatever ``train()`` asks for. Copies and pickles are of the
    layer without adaptation.
    """

    _normalizer: Normalizer

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Normalize ``input`` by the mixed moments, and let the layer do the rest."""
        normalizer = self._normalizer
        x = normalizer.normalize(self, input)
        names = normalizer.spec.mean, normalizer.spec.var
        tables = [tensor_table(self, name) for name in names]
        before = [table[name] for table, name in zip(tables, names, strict=True)]
        mode = self.training
        try:
            for table, name, make in zip(
                tables, names, (torch.zeros_like, torch.ones_like), strict=True
            ):
                table[name] = make(table[name].detach())
            self.training = False
            return super().forward(x, *args, **kwargs)
        finally:
            self.training = mode
            for table, name, tensor in zip(tables, names, before, strict=True):
                table[name] = tensor

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode; modules inside the layer follow ``mode``."""
        for child in self.children():
            child.train(mode)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        parts = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        state = {key: value for key, value in vars(self).items() if key != "_normalizer"}
        base: type = vars(type(self))["_adapted_from"]
        return (_blank, (base,), state, *parts[3:])


def adapted_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of ``cls``, of the same name, that adapts to its input.

    >>> adapted = adapted_class(nn.BatchNorm1d)
    >>> adapted.__name__, issubclass(adapted, nn.BatchNorm1d)
    ('BatchNorm1d', True)
    """
    names = {key: getattr(cls, key) for key in ("__module__", "__qualname__", "__doc__")}
    meta: Any = type(cls)
    return _ADAPTED.get(cls) or _ADAPTED.setdefault(
        cls, meta(cls.__name__, (AdaptedMixin, cls), {**names, "_adapted_from": cls})
    )


def tensor_table(layer: nn.Module, name: str) -> MutableMapping[str, Any]:
    """Return the table of ``layer`` that holds a tensor: buffers, parameters, or attributes.

    Raises:
        KeyError: none does: it is computed from others.
    """
    for table in (layer._buffers, layer._parameters, vars(layer)):
        if name in table:
            return cast(MutableMapping[str, Any], table)
    raise KeyError(name)


def _blank(cls: type[nn.Module]) -> nn.Module:
    return cls.__new__(cls)
