"""Layers of other libraries, computed by the kernels of this package.

The layer stays the same object. Its class becomes a subclass of its own class, of the same name,
created by :func:`foreign_class`. In an eager call on plain tensors it computes as the layer here
that has its formula; everything else is computed by the library's own ``forward``, so compiled,
exported, traced and scripted models are those of the library.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import Parameter

from normkit.kernels.modes import transformed
from normkit.nn.freezing import base_class, frozen_class, is_frozen
from normkit.nn.norm_formula import (
    RANKS,
    NormSpec,
    activation,
    as_ours,
    attribute,
    normalized_shape,
)
from normkit.nn.scripting import as_class

__all__ = ["ForeignMixin", "compute", "foreign_class", "original_class"]

# Subclasses created so far, by the library's class and the formula.
_CREATED: dict[tuple[type[nn.Module], NormSpec], type[nn.Module]] = {}


class ForeignMixin(nn.Module):
    """Mixin that :func:`foreign_class` puts before a library's class."""

    _formula: NormSpec

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the layer as ``torch.jit.script`` can compile it, which calls this first."""
        return as_class(self, original_class(base_class(type(self))))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # By the library's class, which can be imported by its name.
        parts = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        cls = base_class(type(self))
        if "_computes" not in vars(cls):  # something was put before it, such as parametrizations
            return parts
        return (_blank, (original_class(cls), cast(Any, cls)._formula), *parts[2:])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled layer, as the library's own if that computes something else now."""
        super().__setstate__(state)
        cls = base_class(type(self))
        if "forward" in vars(self) or "_computes" not in vars(cls):
            return
        from normkit.nn.norm_spec import norm_spec

        spec = norm_spec(self)
        cls = original_class(cls)
        if spec is None:
            warnings.warn(
                f"{cls.__qualname__} is computed by its own library, whose version computes "
                "something else than the one that it was pickled with",
                stacklevel=2,
            )
        after = cls if spec is None else foreign_class(cls, spec)
        object.__setattr__(self, "__class__", frozen_class(after) if is_frozen(self) else after)


def foreign_class(cls: type[nn.Module], spec: NormSpec) -> type[nn.Module]:
    """Return the subclass of ``cls``, of the same name, that computes ``spec`` by kernels."""
    created = _CREATED.get((cls, spec))
    if created is None:
        names: dict[str, Any] = {
            key: getattr(cls, key) for key in ("__module__", "__qualname__", "__doc__")
        }
        names |= {"_computes": cls, "_formula": spec, "forward": _forward_of(cls, spec)}
        meta: Any = type(cls)
        created = _CREATED.setdefault((cls, spec), meta(cls.__name__, (ForeignMixin, cls), names))
    return created


def original_class(cls: type) -> type[nn.Module]:
    """Return the class that :func:`foreign_class` created ``cls`` from, or ``cls`` itself.

    >>> original_class(nn.BatchNorm2d) is nn.BatchNorm2d
    True
    """
    original: type[nn.Module] = vars(cls).get("_computes", cls)
    return original


def _forward_of(cls: type[nn.Module], spec: NormSpec) -> Any:
    original: Any = cls.forward

    def forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if not (args or kwargs or is_compiling()):
            y = compute(self, spec, x)
            if y is not None:
                return y
        return original(self, x, *args, **kwargs)

    # The names of its arguments are those of an exported graph's inputs.
    forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    forward.__doc__ = original.__doc__
    return forward


def compute(layer: nn.Module, spec: NormSpec, x: Any) -> Tensor | None:
    """Return what ``layer`` computes, by the kernels; None where that is for its own ``forward``.

    Not to be called while compiling.
    """
    if type(x) is not Tensor and type(x) is not Parameter:
        return None
    values = [attribute(layer, name) for name in spec.names]
    tensors = [value for value in values if value is not None]
    if transformed(*tensors) or not _fits(layer, spec, x, tensors):
        return None
    act, rest = activation(layer, spec)
    if spec.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    ours = as_ours(layer, spec, act, x)
    y: Tensor = ours.forward(x)
    if ours._stats_updated:
        layer.__dict__["_stats_updated"] = True
    for module in rest:
        y = module(y)
    return y


def _fits(layer: nn.Module, spec: NormSpec, x: Tensor, tensors: list[Tensor]) -> bool:
    """Return True for inputs for which the formula is known to be the layer's."""
    if not x.is_floating_point():
        return False
    if not spec.like_torch:
        if torch.is_autocast_enabled(x.device.type):
            return False
        for tensor in tensors:
            if tensor.dtype != x.dtype:
                return False
    ranks = RANKS.get(spec.layer)
    if ranks is not None:
        if x.dim() not in ranks:
            return False
        channels = x.shape[1]
        return all(tensor.numel() == channels for tensor in tensors)
    shape = normalized_shape(layer, spec, tensors[0] if tensors else None, x)
    return shape is not None and tuple(x.shape[-len(shape) :]) == shape


def _blank(cls: type[nn.Module], spec: NormSpec) -> nn.Module:
    created = foreign_class(cls, spec)
    return created.__new__(created)
