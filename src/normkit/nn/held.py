"""How a layer's statistics are held still, in training mode too.

``layer.eval()`` is undone by the next ``model.train()``, and momentum 0 still normalizes with the
batch. What stays is the class: a held layer is of a subclass, made for it by :func:`holding`,
whose ``train()`` leaves it in evaluation mode. ``isinstance(layer, Held)`` tells.
"""

from __future__ import annotations

from abc import ABCMeta
from typing import Any, cast

from torch import Tensor, nn

__all__ = [
    "Held", "can_hold", "hold", "holding", "is_constant", "is_held", "plain", "release",
    "remembers",
]  # fmt: skip

# Subclasses that were made, each once.
_HOLDING: dict[type[nn.Module], type[nn.Module]] = {}


class Held(nn.Module):
    """Mixin that :func:`holding` puts before a layer's class: its statistics do not move.

    The layer normalizes with what it remembers, whatever mode its model is in, and
    ``reset_running_stats`` leaves it alone too, as ``torch.optim.swa_utils.update_bn`` calls that
    on every layer. Loading a checkpoint still sets the statistics.
    """

    # The mode that the layer would be in, were it not held. (Not annotated: torch.jit reads those.)
    _mode_asked = True

    def train(self, mode: bool = True) -> Any:
        """Evaluation mode whatever ``mode`` says; modules inside the layer follow ``mode``."""
        super().train(mode)
        self._mode_asked, self.training = mode, False
        return self

    def reset_running_stats(self) -> None:
        """Nothing: they are held."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        # By the class it was made from, which can be found by its name.
        cls = type(self)
        parts = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        return (_blank, (plain(cls),), *parts[2:]) if plain(cls) is not cls else parts


def holding(cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``cls`` whose ``train()`` leaves it in evaluation mode; of the same name.

    >>> layer = holding(nn.BatchNorm1d)(2).train()
    >>> layer.training, isinstance(layer, nn.BatchNorm1d), layer
    (False, True, BatchNorm1d(2, eps=1e-05, ...))
    """
    names = {key: getattr(cls, key) for key in ("__module__", "__qualname__", "__doc__")}
    meta: Any = type(cls)
    return _HOLDING.get(cls) or _HOLDING.setdefault(
        cls, meta(cls.__name__, (Held, cls), {**names, "_held_from": cls})
    )


def plain(cls: type) -> type:
    """The class that ``cls`` was made from by :func:`holding`, or ``cls`` itself.

    >>> plain(holding(nn.BatchNorm1d)) is plain(nn.BatchNorm1d) is nn.BatchNorm1d
    True
    """
    # Not by inheritance: a subclass of one that was made is something else again.
    found: type = vars(cls).get("_held_from", cls)
    return found


def is_held(layer: nn.Module) -> bool:
    """Whether :func:`release` can let ``layer`` go: it is held and nothing was put over that."""
    return plain(type(layer)) is not type(layer)


def can_hold(layer: nn.Module) -> bool:
    """Whether the class of ``layer`` can be given a subclass that nobody notices."""
    cls = type(layer)
    # A register of subclasses, or a way of its own to be copied.
    noticed = {"__init_subclass__", "__reduce__", "__reduce_ex__", "__deepcopy__"}
    known = {"abc", "builtins", "normkit", "torch", "typing"}
    bases = [base for base in cls.__mro__ if base.__module__.split(".")[0] not in known]
    return type(cls) in (type, ABCMeta) and not any(noticed & vars(base).keys() for base in bases)


def remembers(module: nn.Module) -> bool:
    """Whether ``module`` keeps a mean and a variance for evaluation, under PyTorch's names.

    >>> remembers(nn.BatchNorm2d(3)), remembers(nn.InstanceNorm2d(3)), remembers(nn.ReLU())
    (True, False, False)
    """
    own = module._buffers  # of a scripted module no dict
    names = ("running_mean", "running_var")
    return all(name in own and isinstance(own[name], Tensor) for name in names)


def is_constant(module: nn.Module) -> bool:
    """Whether ``module`` is a frozen batch normalization by its make: ours, or another library's.

    >>> is_constant(nn.BatchNorm2d(3))
    False
    """
    return any(base.__name__.startswith("FrozenBatchNorm") for base in type(module).__mro__)


def hold(layer: nn.Module, asked: bool | None = None) -> None:
    """Hold ``layer``, in place, until :func:`release`.

    ``asked``: the mode that it then goes into, if no other is asked for; None for its own.
    """
    asked = layer.training if asked is None else asked
    object.__setattr__(layer, "__class__", holding(type(layer)))
    held = cast(Held, layer)
    held._mode_asked, held.training = asked, False


def release(layer: nn.Module) -> None:
    """Let ``layer`` be as it would have been without :func:`hold`, its mode included."""
    asked = cast(Held, layer)._mode_asked
    object.__setattr__(layer, "__class__", plain(type(layer)))
    vars(layer).pop("_mode_asked", None)
    layer.training = asked


def _blank(cls: type[nn.Module]) -> nn.Module:
    made = holding(cls)
    return made.__new__(made)
