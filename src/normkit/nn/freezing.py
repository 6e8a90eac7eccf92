"""Freeze a layer's statistics, in training mode too.

``layer.eval()`` is undone by the next ``model.train()``, and momentum 0 still normalizes with the
batch. A class persists: a frozen layer has a subclass, made by :func:`frozen_class`, whose
``train()`` leaves it in evaluation mode. Test for it with ``isinstance(layer, FrozenMixin)``.
"""

from __future__ import annotations

import copyreg
from abc import ABCMeta
from collections.abc import Callable
from typing import Any, cast

from torch import nn

from normkit.nn.guards import GuardedVariance

__all__ = [
    "FrozenMixin",
    "base_class",
    "can_freeze",
    "freeze_layer",
    "frozen_class",
    "is_constant",
    "is_frozen",
    "unfreeze_layer",
]

# The frozen subclass of each class, made once.
_FROZEN: dict[type[nn.Module], type[nn.Module]] = {}


class FrozenMixin(nn.Module):
    """Mixin that :func:`frozen_class` puts before a layer's class: its statistics stay.

    The layer normalizes with its running statistics whatever mode its model is in.
    ``reset_running_stats`` has no effect, since ``torch.optim.swa_utils.update_bn`` calls it on
    every layer. Loading a checkpoint still sets the statistics, and so does assigning other
    tensors, as Lightning's ``StochasticWeightAveraging`` does in every batch normalization: convert
    the layers to ``"frozen"`` there.
    """

    # The mode last requested by train(), restored on unfreeze. Without an annotation, which
    # torch.jit would read.
    _requested_mode = True
    _beyond = ("frozen state",)
    running_var = cast(Any, GuardedVariance())

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode; modules inside the layer follow ``mode``."""
        super().train(mode)
        self._requested_mode, self.training = mode, False
        return self

    def reset_running_stats(self) -> None:
        """Do nothing: the statistics are frozen."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        # By the base class, which pickle can find by its name.
        base = base_class(type(self))
        parts = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        if base is type(self):
            return parts
        # Or as another subclass of that kind does, which the frozen class was made from.
        usual = parts[0] in (copyreg.__newobj__, copyreg._reconstructor)  # type: ignore[attr-defined]
        return (_blank, (base,), *parts[2:]) if usual else (_blank_by, parts[:2], *parts[2:])


def frozen_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of ``cls``, of the same name, that stays in evaluation mode.

    >>> layer = frozen_class(nn.BatchNorm1d)(2).train()
    >>> layer.training, isinstance(layer, nn.BatchNorm1d), layer
    (False, True, BatchNorm1d(2, eps=1e-05, ...))
    """
    names = {key: getattr(cls, key) for key in ("__module__", "__qualname__", "__doc__")}
    meta: Any = type(cls)
    return _FROZEN.get(cls) or _FROZEN.setdefault(
        cls, meta(cls.__name__, (FrozenMixin, cls), {**names, "_frozen_from": cls})
    )


def base_class(cls: type) -> type:
    """Return the class that :func:`frozen_class` made ``cls`` from, or ``cls`` itself.

    >>> base_class(frozen_class(nn.BatchNorm1d)) is base_class(nn.BatchNorm1d) is nn.BatchNorm1d
    True
    """
    # Not by inheritance: a subclass of a frozen class is a class of its own.
    base: type = cls.__dict__.get("_frozen_from", cls)  # by vars(), Dynamo breaks before torch 2.9
    return base


def is_frozen(layer: nn.Module) -> bool:
    """Return True if ``layer`` itself was frozen, not a class it derives from."""
    return base_class(type(layer)) is not type(layer)


def can_freeze(layer: nn.Module) -> bool:
    """Return whether a subclass of the class of ``layer`` goes unnoticed."""
    cls = type(layer)
    # A registry of subclasses, or custom copying.
    customized = {"__init_subclass__", "__reduce__", "__reduce_ex__", "__deepcopy__"}
    known = {"abc", "builtins", "normkit", "torch", "typing"}
    bases = [base for base in cls.__mro__ if base.__module__.split(".")[0] not in known]
    return type(cls) in (type, ABCMeta) and not any(customized & vars(b).keys() for b in bases)


def is_constant(module: nn.Module) -> bool:
    """Return whether ``module`` is a frozen batch normalization by construction, of any library.

    >>> is_constant(nn.BatchNorm2d(3))
    False
    """
    named = any("FrozenBatchNorm" in base.__name__ for base in type(module).__mro__)
    return named and not any(p.requires_grad for p in module.parameters())


def freeze_layer(layer: nn.Module, mode: bool | None = None) -> None:
    """Freeze the statistics of ``layer``, in place.

    ``mode``: the training mode to restore on unfreeze; by default the present one.
    """
    mode = layer.training if mode is None else mode
    object.__setattr__(layer, "__class__", frozen_class(type(layer)))
    frozen = cast(FrozenMixin, layer)
    frozen._requested_mode, frozen.training = mode, False


def unfreeze_layer(layer: nn.Module) -> None:
    """Revert :func:`freeze_layer`: the layer returns to the mode last requested."""
    mode = cast(FrozenMixin, layer)._requested_mode
    object.__setattr__(layer, "__class__", base_class(type(layer)))
    vars(layer).pop("_requested_mode", None)
    layer.training = mode


def _blank(cls: type[nn.Module]) -> nn.Module:
    frozen = frozen_class(cls)
    return frozen.__new__(frozen)


def _blank_by(make: Callable[..., nn.Module], args: tuple[Any, ...]) -> nn.Module:
    return _blank(type(make(*args)))
