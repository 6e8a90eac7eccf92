"""Which formula a normalization layer of another library computes: one registry for every tool.

:mod:`normkit.nn.stats_spec` says which layers keep statistics, this one what a layer computes. A
name alone is not trusted, since other versions of a library may compute something else under it:
:func:`norm_spec` compares the formula with the layer's own ``forward`` once, on small tensors.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from normkit.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normkit.nn.foreign import original_class
from normkit.nn.freezing import base_class
from normkit.nn.groupnorm import GroupNorm
from normkit.nn.layer import Layer
from normkit.nn.layernorm import LayerNorm, RMSNorm
from normkit.nn.norm_check import why_differs
from normkit.nn.norm_formula import NormSpec, activation, as_ours
from normkit.nn.stats_spec import definer, overrides_forward, qualified_name, replaces_forward

__all__ = ["NormSpec", "equivalent", "norm_spec", "register_norm", "why_no_norm_spec"]

# By qualified name, or the end of it: what such a class may compute, or why no layer here does.
_BY_NAME: dict[str, tuple[NormSpec, ...] | str] = {}
# Of classes that have the ``forward`` of one of torch.nn's.
_INHERITED: dict[type, NormSpec] = {
    nn.BatchNorm1d: NormSpec(BatchNorm1d, like_torch=True),
    nn.BatchNorm2d: NormSpec(BatchNorm2d, like_torch=True),
    nn.BatchNorm3d: NormSpec(BatchNorm3d, like_torch=True),
    nn.GroupNorm: NormSpec(GroupNorm, like_torch=True),
    nn.LayerNorm: NormSpec(LayerNorm, shape="normalized_shape", like_torch=True),
    nn.RMSNorm: NormSpec(RMSNorm, bias=None, shape="normalized_shape", like_torch=True),
}
# By pattern of a qualified name, in the order of registration.
_BY_PATTERN: dict[str, tuple[NormSpec, ...] | str] = {}


def register_norm(name: str, *specs: NormSpec, why: str | None = None) -> None:
    """Make a normalization layer of another library known without importing it.

    The class that defines the layer's ``forward`` decides, as in
    :func:`normkit.nn.stats_spec.register_by_name`.

    Args:
        name: its qualified name, or the end of it, or a pattern with ``*`` of the whole name.
        specs: what it may compute. The first that agrees with the layer itself is used.
        why: in place of specs, why no layer of this package computes the same.

    >>> class Norm(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.scale = nn.Parameter(torch.ones(4))
    ...     def forward(self, x):
    ...         return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
    >>> from normkit.nn import RMSNorm
    >>> register_norm(f"{__name__}.Norm", NormSpec(RMSNorm, eps=1e-6, weight="scale", bias=None))
    >>> norm_spec(Norm()) is not None
    True
    """
    table = _BY_PATTERN if "*" in name else _BY_NAME
    table[name] = specs if why is None else why


def norm_spec(layer: nn.Module) -> NormSpec | None:
    """Return which formula ``layer`` computes, compared with the layer itself, or None.

    Layers of other libraries alone: those of ``torch.nn`` and of this package are known by their
    class.
    """
    entry = _find(layer)
    return entry if isinstance(entry, NormSpec) else None


def why_no_norm_spec(layer: nn.Module) -> str | None:
    """Return why a registered layer cannot be computed by one of this package, else None."""
    entry = _find(layer)
    return entry if isinstance(entry, str) else None


def equivalent(layer: nn.Module) -> tuple[Layer, list[nn.Module]] | None:
    """Return a layer of this package that computes what ``layer`` does, and modules to call after.

    It shares tensors and mode with ``layer`` and nothing else, holds the activation if that is one
    of those in :data:`normkit.core.activations.ActLike`, and otherwise leaves it to the modules.
    None for layers that are not known, for those whose γ is computed (:attr:`NormSpec.offset`), and
    for those that take any number of values.

    >>> from torch import nn
    >>> equivalent(nn.BatchNorm2d(3)) is None
    True
    """
    spec = norm_spec(layer)
    if spec is None or spec.offset:
        return None
    act, rest = activation(layer, spec)
    state = vars(as_ours(layer, spec, act))
    if state.get("normalized_shape", ()) is None:
        return None
    ours = spec.layer.__new__(spec.layer)
    nn.Module.__init__(ours)
    sizes = (1, 1) if issubclass(spec.layer, nn.GroupNorm) else (1,)
    make: Callable[..., nn.Module] = spec.layer
    example = vars(make(*sizes, eps=1.0, device="meta"))
    weight = state["_parameters"].get("weight")
    sized = state["_buffers"].get("running_mean", weight)
    defaults = {
        **{name: example[name] for name in example.keys() - vars(ours).keys()},
        "num_features": None if sized is None else sized.numel(),
        "affine": weight is not None,
        "elementwise_affine": weight is not None,
    }
    for name, value in defaults.items():
        if name in example:
            vars(ours)[name] = state.get(name, value)
    vars(ours).update({name: state[name] for name in ("_act", "_act_option", "training")})
    for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        vars(ours)[name] = state[name].copy()
    return ours, rest


def _find(layer: nn.Module) -> NormSpec | str | None:
    if isinstance(layer, (torch.jit.ScriptModule, Layer)):
        return None
    cls = original_class(base_class(type(layer)))
    registered = _registered(qualified_name(definer(cls, "forward"))) or _inherited(layer, cls)
    if registered is None or isinstance(registered, str):
        return registered
    if is_parametrized(layer):
        return "parametrized"
    if "forward" in vars(layer) and replaces_forward(layer):
        return "its forward was replaced"
    why = None
    for spec in registered:
        for each in (spec, dataclasses.replace(spec, like_torch=False))[: 1 + spec.like_torch]:
            if (why := why_differs(layer, cls, each)) is None:
                return each
    if len(registered) > 1:
        return f"its forward agrees with none of the {len(registered)} formulas known by its name"
    return f"its forward {why}"


def _inherited(layer: nn.Module, cls: type[nn.Module]) -> tuple[NormSpec, ...] | None:
    """Return the formula of the class of ``torch.nn`` whose ``forward`` another library's has."""
    package = cls.__module__.partition(".")[0]
    if package in ("torch", "normkit") or isinstance(layer, LazyModuleMixin):
        return None
    namesake = next((base for base in cls.__mro__ if base in _INHERITED), None)
    return None if namesake is None or overrides_forward(cls) else (_INHERITED[namesake],)


def _registered(name: str) -> tuple[NormSpec, ...] | str | None:
    if name.startswith("torch."):
        return None
    parts = name.split(".")
    for i in range(len(parts) - 1):
        if (entry := _BY_NAME.get(".".join(parts[i:]))) is not None:
            return entry
    for pattern, entry in _BY_PATTERN.items():
        if fnmatch.fnmatchcase(name, pattern):
            return entry
    return None
