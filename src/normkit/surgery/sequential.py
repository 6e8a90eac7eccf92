"""A ``Sequential`` that computes a normalization and the activation after it in one.

Nothing in it is replaced: the same modules stand in the same places, and a module that is called
alone, by an index or a loop over the children, does what it always did. Only where the Sequential
runs itself are the two taken together, which it decides anew in each call. So hooks, other
modules in these places and shared modules need no care beforehand.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import fx, nn
from torch.nn.modules.module import _has_any_global_hook

import normkit.nn
from normkit.core.activations import Act
from normkit.nn.held import plain
from normkit.nn.layer import Layer

__all__ = ["LAYERS", "can_fuse", "fusing", "pairs", "watched"]

# Exactly these: a subclass may do anything with the activation.
LAYERS = frozenset(
    cls
    for cls in map(vars(normkit.nn).get, normkit.nn.__all__)
    if isinstance(cls, type) and issubclass(cls, Layer)
)

# Subclasses that were made, each once.
_FUSING: dict[type[nn.Sequential], type[nn.Sequential]] = {}
_VIEWS: dict[tuple[type[nn.Module], Act], type[nn.Module]] = {}


class _Fusing(nn.Sequential):
    """The forward of a Sequential that fuses, put before its class by :func:`fusing`."""

    _plain: type[nn.Sequential]

    def forward(self, input: Any) -> Any:
        """As ``torch.nn.Sequential``, with fewer passes over memory."""
        # A tracer records modules one by one, and a compiler fuses by itself.
        if (
            isinstance(input, fx.Proxy)
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # type: ignore[attr-defined]
            or _has_any_global_hook()
        ):
            return super().forward(input)
        modules = tuple(self._modules.values())
        done = -1
        for i, layer in enumerate(modules):
            if i == done:  # together with the layer before
                continue
            act = _together(layer, modules[i + 1]) if i + 1 < len(modules) else None
            if act is None:
                input = layer(input)
            else:
                input = _seen_with(layer, act).forward(input)
                done = i + 1
        return input

    def __reduce_ex__(self, protocol: Any) -> Any:
        # By the class it was made from, which can be found by its name.
        parts = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        return (_blank, (self._plain,), *parts[2:])


def fusing(cls: type[nn.Sequential]) -> type[nn.Sequential]:
    """The subclass of ``cls`` that fuses; it has the same name.

    >>> fusing(nn.Sequential)(normkit.nn.RMSNorm(2), nn.ReLU())
    Sequential(
      (0): RMSNorm((2,), eps=None, elementwise_affine=True)
      (1): ReLU()
    )
    """
    return _FUSING.get(cls) or _FUSING.setdefault(
        cls, type(cls.__name__, (_Fusing, cls), {**_known_as(cls), "_plain": cls})
    )


def can_fuse(cls: type[nn.Module]) -> bool:
    """Whether ``cls`` is a Sequential that runs its modules in turn and can be given a subclass."""
    plain = nn.Sequential
    return (
        issubclass(cls, plain)
        and not issubclass(cls, _Fusing)
        and type(cls) is type
        and all(
            getattr(cls, name) is getattr(plain, name)
            for name in ("forward", "__call__", "__iter__", "__reduce_ex__", "__reduce__")
        )
        # It may keep a register of subclasses.
        and not any("__init_subclass__" in vars(base) for base in cls.__mro__[:-1])
    )


class Pair(NamedTuple):
    """A module and the activation that stands right after it."""

    key: str
    layer: nn.Module
    act_key: str
    act: nn.Module


def pairs(seq: nn.Sequential) -> Iterator[Pair]:
    """Each module of ``seq`` without an activation of its own, and one that could be its."""
    for (key, layer), (act_key, act) in itertools.pairwise(seq._modules.items()):
        if _act_of(act) is not None and getattr(layer, "act", None) is None:
            yield Pair(key, layer, act_key, act)


def watched(module: nn.Module) -> bool:
    """Whether somebody would notice that ``module`` was not called, or has changed how it runs."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in vars(module)
    )


def _together(layer: Any, after: nn.Module) -> Act | None:
    """The activation to compute with ``layer``, or None where the two run one after the other."""
    if plain(type(layer)) not in LAYERS or layer._act is not None:
        return None
    act = _act_of(after)
    return None if act is None or watched(layer) or watched(after) else act


def _act_of(module: Any) -> Act | None:
    cls = type(module)
    if cls is nn.ReLU:
        return Act("relu")
    if cls is nn.SiLU:
        return Act("silu")
    if cls is nn.GELU and module.approximate == "none":
        return Act("gelu")
    if cls is nn.LeakyReLU and isinstance(module.negative_slope, (int, float)):
        return Act("leaky_relu", float(module.negative_slope))
    return None


def _seen_with(layer: nn.Module, act: Act) -> nn.Module:
    """The same layer, seen as one with an activation: all its state is shared, both ways."""
    cls = type(layer)
    view = _VIEWS.get((cls, act))
    if view is None:
        # A property, which comes before what stands in the layer's own dictionary.
        names = {**_known_as(cls), "_act": property(lambda _: act)}
        view = _VIEWS.setdefault((cls, act), type(cls.__name__, (cls,), names))
    seen = object.__new__(view)
    object.__setattr__(seen, "__dict__", layer.__dict__)
    return seen


def _known_as(cls: type) -> dict[str, Any]:
    return {key: getattr(cls, key) for key in ("__module__", "__qualname__", "__doc__")}


def _blank(cls: type[nn.Sequential]) -> nn.Sequential:
    made = fusing(cls)
    return made.__new__(made)
