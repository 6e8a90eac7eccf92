"""Classes of ``torch.nn`` that layers here stand for, for tools that know no others."""

from __future__ import annotations

from typing import Any

from torch import nn

from normkit.nn.freezing import base_class

__all__ = ["as_namesake", "namesake"]


def namesake(cls: type) -> type[nn.Module] | None:
    """Return the class of ``torch.nn`` whose place ``cls`` takes; None if there is none.

    A class of ``torch.nn`` takes its own, and a frozen class that of the class it froze.

    >>> from normkit.nn.layernorm import LayerNorm, LayerNorm2d
    >>> namesake(LayerNorm) is nn.LayerNorm, namesake(LayerNorm2d)
    (True, None)
    """
    cls = base_class(cls)
    plain = getattr(nn, cls.__name__, None)
    if not isinstance(plain, type) or not issubclass(cls, plain):
        return None
    ours = cls.__module__.startswith("normkit.nn.")
    return plain if cls is plain or ours else None


def as_namesake(layer: nn.Module) -> nn.Module:
    """Return a module of that class with the same tensors and mode as ``layer``, without its hooks.

    It normalizes as ``layer`` does in evaluation; activation and kind of average are not in it.
    """
    plain = namesake(type(layer))
    assert plain is not None
    other: Any = plain.__new__(plain)
    nn.Module.__init__(other)
    for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        vars(other)[name] = vars(layer)[name].copy()
    # What PyTorch's class does not know has a leading underscore.
    vars(other).update({k: v for k, v in vars(layer).items() if not k.startswith("_")})
    module: nn.Module = other
    return module
