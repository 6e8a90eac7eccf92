"""``Sequential`` that computes a normalization and the activation after it in one operation.

None of its modules is replaced: a module that is called alone, by an index or a loop over the
children, behaves as before. Only ``Sequential.forward`` fuses the two, and decides so anew in each
call. So hooks, modules assigned later and shared modules need no special treatment.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import fx, nn

import normkit.nn
from normkit.compat import exporting, has_global_hooks
from normkit.core.activations import Act, act_of_module, has_hooks
from normkit.nn.freezing import base_class
from normkit.nn.layer import Layer
from normkit.nn.scripting import as_class

__all__ = ["LAYERS", "base_sequential", "can_fuse", "fusing_class", "pairs"]

# Exactly these classes: a subclass may use the activation differently. As keys, of which a compiled
# graph checks before each call those that it asked for; of a set it checks each element.
LAYERS: dict[type[nn.Module], None] = dict.fromkeys(
    cls
    for cls in map(vars(normkit.nn).get, normkit.nn.__all__)
    if isinstance(cls, type) and issubclass(cls, Layer)
)

# Of these a compiled graph keeps the kernels, with the activation.
_COMPILED = dict.fromkeys(
    (normkit.nn.BatchNorm1d, normkit.nn.BatchNorm2d, normkit.nn.BatchNorm3d, normkit.nn.GroupNorm)
)

# Subclasses created so far, by what they were created for.
_FUSING: dict[type[nn.Sequential], type[nn.Sequential]] = {}
_VIEWS: dict[tuple[type[nn.Module], Act], type[nn.Module]] = {}


class _Fusing(nn.Sequential):
    """Mixin with the fusing forward; :func:`fusing_class` puts it before a Sequential's class."""

    _base_class: type[nn.Sequential]

    def forward(self, input: Any) -> Any:
        """Run the modules in order, as ``torch.nn.Sequential`` does, with fewer memory passes."""
        # A tracer records each module.
        if (
            isinstance(input, fx.Proxy)
            or exporting()
            or torch.jit.is_tracing()  # type: ignore[attr-defined]
            or has_global_hooks()
        ):
            return super().forward(input)
        compiling = torch.compiler.is_compiling()
        modules = tuple(self._modules.values())
        fused = -1
        for i, layer in enumerate(modules):
            if i == fused:  # computed with the layer before
                continue
            act = _fused_act(layer, modules[i + 1]) if i + 1 < len(modules) else None
            if act is None or (compiling and type(layer) not in _COMPILED):
                input = layer(input)
            elif compiling:  # which has no views
                input = cast(Any, layer)._forward_with(act, input, None)
                fused = i + 1
            else:
                input = _view_with_act(layer, act).forward(input)
                fused = i + 1
        return input

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the Sequential as ``torch.jit.script`` can compile it, which calls this first."""
        return as_class(self, self._base_class)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle the base class, which can be imported by its name.
        parts = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        return (_new_instance, (self._base_class,), *parts[2:])


def fusing_class(cls: type[nn.Sequential]) -> type[nn.Sequential]:
    """Return the subclass of ``cls`` that fuses; it has the same name.

    >>> fusing_class(nn.Sequential)(normkit.nn.RMSNorm(2), nn.ReLU())
    Sequential(
      (0): RMSNorm((2,), eps=None, elementwise_affine=True)
      (1): ReLU()
    )
    """
    return _FUSING.get(cls) or _FUSING.setdefault(
        cls, type(cls.__name__, (_Fusing, cls), {**_identity(cls), "_base_class": cls})
    )


def base_sequential(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class that :func:`fusing_class` made ``cls`` from, or ``cls`` itself.

    >>> base_sequential(fusing_class(nn.Sequential)) is base_sequential(nn.Sequential)
    True
    """
    base: type[nn.Module] = vars(cls).get("_base_class", cls)
    return base


def can_fuse(cls: type[nn.Module]) -> bool:
    """Return True if ``cls`` runs its modules in order and allows a subclass."""
    base = nn.Sequential
    return (
        issubclass(cls, base)
        and not issubclass(cls, _Fusing)
        and type(cls) is type
        and all(
            getattr(cls, name) is getattr(base, name)
            for name in ("forward", "__call__", "__iter__", "__reduce_ex__", "__reduce__")
        )
        # Such a class may register its subclasses.
        and not any("__init_subclass__" in vars(parent) for parent in cls.__mro__[:-1])
    )


class Pair(NamedTuple):
    """Module and the activation right after it."""

    key: str
    layer: nn.Module
    act_key: str
    act: nn.Module


def pairs(seq: nn.Sequential) -> Iterator[Pair]:
    """Yield each module of ``seq`` that has no activation itself and is followed by one."""
    for (key, layer), (act_key, act) in itertools.pairwise(seq._modules.items()):
        if act_of_module(act) is not None and getattr(layer, "act", None) is None:
            yield Pair(key, layer, act_key, act)


def _fused_act(layer: Any, after: nn.Module) -> Act | None:
    """Return the activation to compute with ``layer``; None if the two run separately."""
    if base_class(type(layer)) not in LAYERS or layer._act is not None:
        return None
    act = act_of_module(after)
    return None if act is None or has_hooks(layer) or has_hooks(after) else act


def _view_with_act(layer: nn.Module, act: Act) -> nn.Module:
    """Return ``layer`` as one with an activation; it shares the attribute dictionary."""
    cls = type(layer)
    view_class = _VIEWS.get((cls, act))
    if view_class is None:
        # A property takes precedence over the layer's dictionary.
        names = {**_identity(cls), "_act": property(lambda _: act)}
        view_class = _VIEWS.setdefault((cls, act), type(cls.__name__, (cls,), names))
    view = object.__new__(view_class)
    object.__setattr__(view, "__dict__", layer.__dict__)
    return view


def _identity(cls: type) -> dict[str, Any]:
    return {key: getattr(cls, key) for key in ("__module__", "__qualname__", "__doc__")}


def _new_instance(cls: type[nn.Sequential]) -> nn.Sequential:
    fusing = fusing_class(cls)
    return fusing.__new__(fusing)
