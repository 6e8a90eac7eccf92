"""Let ``torch.jit.script`` compile a layer as the class of ``torch.nn`` that it stands for.

TorchScript compiles the source of ``forward`` and of what it calls, which here is no TorchScript.
While it reads a module, the module has a class with the methods of ``torch.nn``'s: from
``__prepare_scriptable__``, which is called first, until its attributes are listed, which is done
last. It is the same object all along, so nothing else that refers to it notices.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from typing import Any, NoReturn

from torch import nn

from normkit.errors import TypeMismatchError, message
from normkit.nn.namesakes import namesake

__all__ = ["as_class", "layer_as_namesake"]

# Methods of torch.nn's classes that ``forward`` consists of, where classes here have others.
_METHODS = ("forward", "_check_input_dim")
# The function of torch.jit that lists a module's attributes after it has compiled it.
_LAST = "create_script_module_impl"

# Created so far: the class to show, by the class of the module and the class it stands for.
_SHOWN: dict[tuple[type, type], type] = {}
# Modules that have such a class now.
_changed: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def layer_as_namesake(layer: Any) -> nn.Module:
    """Return ``layer`` itself, which ``torch.jit.script`` reads as its namesake.

    Raises:
        TypeMismatchError: its namesake computes something else, or there is none.
    """
    plain = namesake(type(layer))
    if plain is None:
        _refuse(f"{type(layer).__name__}, which torch.nn lacks")
    if layer.act is not None:
        _refuse(f"{type(layer).__name__} with act={layer.act!r}")
    average = getattr(layer, "average", "exponential")
    if average != "exponential":
        _refuse(f"{type(layer).__name__} with average={average!r}")
    return as_class(layer, plain)


def as_class(module: nn.Module, plain: type[nn.Module]) -> nn.Module:
    """Return ``module`` itself, which is read as a ``plain`` until it has been compiled.

    Where compiling fails, the next call, copy or pickle of the module gives it its class back.
    """
    if module in _changed:
        _restore(module)
    cls = type(module)
    shown = _SHOWN.get((cls, plain)) or _SHOWN.setdefault((cls, plain), _class(cls, plain))
    object.__setattr__(module, "__class__", shown)
    _changed.add(module)
    return module


def _refuse(received: str) -> NoReturn:
    """Raise what would otherwise be buried under a stack of TorchScript's own messages.

    Modules that were prepared before get their classes back.
    """
    for other in list(_changed):
        _restore(other)
    raise TypeMismatchError(
        message(
            "layers that torch.jit.script can compile: the namesakes of torch.nn's, without act "
            "and with average='exponential'",
            received,
            "call torch.jit.trace(model.eval(), example) or torch.export.export",
        )
    )


def _class(cls: type, plain: type[nn.Module]) -> type:
    names: dict[str, Any] = {key: getattr(cls, key) for key in ("__module__", "__qualname__")}
    names |= {key: getattr(plain, key) for key in _METHODS if hasattr(plain, key)}
    annotations = map(inspect.get_annotations, plain.__mro__)
    names["__annotations__"] = next((each for each in annotations if each), {})
    names["_namesake"] = None
    names |= {"_class_of_module": cls, "__call__": _call, "__dir__": _dir, "__reduce_ex__": _reduce}
    shown: type = type(cls)(cls.__name__, (cls,), names)
    return shown


def _restore(module: Any) -> None:
    _changed.discard(module)
    object.__setattr__(module, "__class__", type(module)._class_of_module)


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    _restore(self)
    return self(*args, **kwargs)


def _reduce(self: Any, protocol: Any) -> Any:
    _restore(self)
    return self.__reduce_ex__(protocol)


def _dir(self: Any) -> list[str]:
    if sys._getframe(1).f_code.co_name == _LAST:
        _restore(self)
    return list(nn.Module.__dir__(self))
