"""Formula of a layer of another library, and the layer as one of this package's classes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor, nn

from normkit.compat import has_global_hooks
from normkit.core.activations import Act, act_of_module, has_hooks
from normkit.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normkit.nn.frozen import (
    FrozenBatchNorm,
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
)
from normkit.nn.groupnorm import GroupNorm
from normkit.nn.layer import Layer
from normkit.nn.layernorm import LayerNorm2d
from normkit.nn.rmsnorm2d import RMSNorm2d

__all__ = [
    "RANKS",
    "NormSpec",
    "activation",
    "as_ours",
    "attribute",
    "normalized_shape",
    "tensors",
]

# How many axes an input with channels on axis 1 may have. Others normalize the last axes of any.
RANKS: dict[type[nn.Module], range] = {
    **dict.fromkeys((BatchNorm1d, FrozenBatchNorm1d), range(2, 4)),
    **dict.fromkeys((BatchNorm3d, FrozenBatchNorm3d), range(5, 6)),
    GroupNorm: range(2, 33),
    **dict.fromkeys((BatchNorm2d, FrozenBatchNorm2d, LayerNorm2d, RMSNorm2d), range(4, 5)),
}


@dataclasses.dataclass(frozen=True)
class NormSpec:
    """Formula of a layer of another library.

    Args:
        layer: class of this package that computes it.
        eps: attribute that holds ε, or its value.
        weight, bias: attributes that hold γ and β; None where there is none.
        offset: added to γ, as by layers that store its distance from 1.
        shape: attribute that holds the sizes of the normalized axes; None for those of γ, or for
            the last axis where there is no γ.
        then: submodules that it calls afterwards, in this order: an activation, a dropout.
        like_torch: whether it treats autocast and inputs of another type than γ as ``torch.nn``
            does. Otherwise it is taken over for inputs of γ's type outside autocast, and computes
            the others itself.
        channels_last: whether an image comes out in that memory format whatever its own is, as
            from layers that move the channels to the end and back.
    """

    layer: type[Layer]
    eps: str | float = "eps"
    weight: str | None = "weight"
    bias: str | None = "bias"
    offset: float = 0.0
    shape: str | None = None
    then: tuple[str, ...] = ()
    like_torch: bool = False
    channels_last: bool = False

    @functools.cached_property
    def has_moments(self) -> bool:
        """Return True if the layer keeps a running mean and variance."""
        return hasattr(self.layer, "running_var")

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Attributes of the tensors that the layer computes with."""
        moments = ("running_mean", "running_var") if self.has_moments else ()
        return tuple(name for name in (self.weight, self.bias, *moments) if name is not None)


def attribute(layer: nn.Module, name: str) -> Any:
    """Return an attribute; the usual places first, as ``nn.Module`` looks into them last."""
    state = layer.__dict__
    for table in ("_parameters", "_buffers", "_modules"):
        if (value := state[table].get(name)) is not None:
            return value
    return getattr(layer, name)


def tensors(layer: nn.Module, spec: NormSpec) -> tuple[Tensor | None, Tensor | None]:
    """Return γ and β of ``layer`` as it applies them.

    γ with an offset is computed in float32 or wider, and differentiably.
    """
    weight: Tensor | None = attribute(layer, spec.weight) if spec.weight else None
    bias: Tensor | None = attribute(layer, spec.bias) if spec.bias else None
    if weight is not None and spec.offset:
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32)) + spec.offset
    return weight, bias


def normalized_shape(
    layer: nn.Module, spec: NormSpec, weight: Tensor | None, x: Tensor | None
) -> tuple[int, ...] | None:
    """Return the sizes of the normalized axes; None if only an input tells them."""
    if spec.shape is not None:
        return tuple(getattr(layer, spec.shape))
    if weight is not None:
        return tuple(weight.shape)
    return None if x is None else tuple(x.shape[-1:])


def activation(layer: nn.Module, spec: NormSpec) -> tuple[Act | None, list[Any]]:
    """Return the activation to compute with the layer, and the modules to call after that."""
    if not spec.then:
        return None, []
    children = layer.__dict__["_modules"]
    modules = [children.get(name) or getattr(layer, name, None) for name in spec.then]
    if has_global_hooks():
        return None, [module for module in modules if module is not None]
    rest = [
        module
        for module in modules
        if module is not None and (type(module) is not nn.Identity or has_hooks(module))
    ]
    if not rest or not isinstance(rest[0], nn.Module) or has_hooks(rest[0]):
        return None, rest
    act = act_of_module(rest[0])
    return act, rest if act is None else rest[1:]


def as_ours(layer: nn.Module, spec: NormSpec, act: Act | None, x: Tensor | None = None) -> Any:
    """Return ``layer`` as one of ``spec.layer``, for a call with ``x``.

    It shares the tables of tensors. Other attributes are copies: what it assigns is lost.
    """
    state = vars(layer)
    parameters = state["_parameters"]
    weight, bias = tensors(layer, spec)
    changed: dict[str, Any] = {
        "eps": getattr(layer, spec.eps) if isinstance(spec.eps, str) else spec.eps,
        "_act": act,
        "_act_option": None if act is None else act.option,
    }
    if issubclass(spec.layer, FrozenBatchNorm):
        moments = {name: attribute(layer, name) for name in ("running_mean", "running_var")}
        changed["_buffers"] = {"weight": weight, "bias": bias, **moments}
        changed["_parameters"] = {}
    elif "bias" not in parameters or parameters.get("weight") is not weight:
        changed["_parameters"] = {"weight": weight, "bias": bias}
    if not (spec.has_moments or issubclass(spec.layer, nn.GroupNorm)):
        changed["normalized_shape"] = normalized_shape(layer, spec, weight, x)
    ours = object.__new__(spec.layer)
    object.__setattr__(ours, "__dict__", {**state, **changed})
    return ours
