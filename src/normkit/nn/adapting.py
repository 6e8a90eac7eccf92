"""Let a layer normalize its input by other moments than those it remembers, while it is adapted.

An adapted layer has a subclass of its class, made by :func:`adapted_class`, which normalizes the
input and gives it to a twin of the layer, with mean 0 and variance 1 in place of the remembered
ones. So γ, β, activation and residual stay the layer's own, gradients pass through the moments, and
the remembered tensors are not written. Test for it with ``isinstance(layer, AdaptedMixin)``.
"""

from __future__ import annotations

import copyreg
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
    layer without adaptation. Nothing of the layer is written in a call, so several threads may
    call it.
    """

    _normalizer: Normalizer

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Normalize ``input`` by the mixed moments, and let the layer do the rest."""
        x = self._normalizer.normalize(self, input)
        base = next(
            vars(c)["_adapted_from"] for c in type(self).__mro__ if "_adapted_from" in vars(c)
        )
        return base.forward(_twin(self, base, self._normalizer.spec), x, *args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode; modules inside the layer follow ``mode``."""
        for child in self.children():
            child.train(mode)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        parts = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        state = {key: value for key, value in vars(self).items() if key != "_normalizer"}
        base: type = vars(type(self))["_adapted_from"]
        # Of builtins alone, so that it loads without this package.
        make = copyreg._reconstructor  # type: ignore[attr-defined]
        return (make, (base, object, None), state, *parts[3:])


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


def _twin(layer: nn.Module, cls: type[nn.Module], spec: StatsSpec) -> nn.Module:
    """Return an object of ``cls`` that shares all of ``layer`` but its statistics and its mode.

    It is made for each call: attributes and tensors of the layer may change from one to the next.
    """
    state = dict(layer.__dict__)
    for kind in ("_buffers", "_parameters"):
        state[kind] = dict(state[kind])
    state.pop("_normalizer", None)
    state["training"] = False
    twin = object.__new__(cls)
    twin.__dict__.update(state)
    for name, make in ((spec.mean, torch.zeros_like), (spec.var, torch.ones_like)):
        tensors = tensor_table(twin, name)
        tensors[name] = make(tensors[name].detach())
    return twin
