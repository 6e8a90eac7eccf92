"""Activations of layers as modules of their own, where another class will not apply them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from normkit.core.activations import Act
from normkit.handle import Skipped, Step
from normkit.surgery.modules import walk

__all__ = ["module_of", "put_out", "why_not_put_out"]

_MODULES: dict[str, Callable[[float], nn.Module]] = {
    "relu": lambda _: nn.ReLU(),
    "relu6": lambda _: nn.ReLU6(),
    "silu": lambda _: nn.SiLU(),
    "gelu": lambda _: nn.GELU(),
    "leaky_relu": nn.LeakyReLU,
}


def module_of(act: Act) -> nn.Module | None:
    """Return the module of ``torch.nn`` that computes ``act``, or None.

    >>> module_of(Act("leaky_relu", 0.2))
    LeakyReLU(negative_slope=0.2)
    """
    make = _MODULES.get(act.name)
    return None if make is None else make(act.slope)


def why_not_put_out(model: nn.Module, layer: nn.Module) -> str | None:
    """Return why modules after ``layer`` cannot do what it did at its end; None if they can."""
    if layer is model or any(key == "_orig_mod" for _, key in _places(model, layer)):
        return "the model itself, with an activation: put it into torch.nn.Sequential(layer) first"
    if layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return "has hooks that see its activation: remove them first"
    for name, module in walk(model):
        if module is not layer and _holds(vars(module), layer):
            return f"an attribute of {name or 'the model'} refers to it, past its modules"
    return None


def put_out(
    model: nn.Module, name: str, layer: nn.Module, after: Sequence[nn.Module]
) -> tuple[Step, str]:
    """Return the step that puts ``Sequential(layer, *after)`` in the place of ``layer``; a note."""
    both = nn.Sequential(layer, *after)
    both.training = layer.training
    places = list(_places(model, layer))

    def do() -> None:
        for parent, key in places:
            parent._modules[key] = both

    def undo() -> Skipped | None:
        if any(parent._modules.get(key) not in (both, layer) for parent, key in places):
            return Skipped(name, nn.Sequential, "was replaced since")
        for parent, key in places:
            parent._modules[key] = layer
        return None

    called = ", ".join(type(module).__name__ for module in after)
    note = f"{called} in a module after it; its own keys begin with {f'{name}.0'!r}"
    return Step(do, undo), note


def _places(model: nn.Module, layer: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for _, module in walk(model):
        for key, child in module._modules.items() if module is not layer else ():
            if child is layer:
                yield module, key


def _holds(value: Any, layer: nn.Module, depth: int = 4) -> bool:
    """Return whether ``value`` leads to ``layer``, past the modules of the model."""
    if value is layer:
        return True
    return depth > 0 and any(_holds(part, layer, depth - 1) for part in _parts(value))


def _parts(value: Any) -> list[Any]:
    """Return what a value holds, as far as one can look into it."""
    if isinstance(value, dict):
        return [v for key, v in value.items() if key != "_modules"]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, FunctionType):
        return [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
    # Modules are visited themselves.
    if isinstance(value, (nn.Module, Tensor, type, ModuleType)):
        return []
    slots = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
    return [*slots, vars(value)] if hasattr(value, "__dict__") else slots
