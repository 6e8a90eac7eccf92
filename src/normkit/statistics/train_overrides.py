"""Layers that a model's own ``train()`` keeps in evaluation mode, such as those of a backbone."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn

from normkit.nn.freezing import FrozenMixin, base_class
from normkit.statistics.preserve import preserve_modes

__all__ = ["KEPT", "kept_in_evaluation"]

KEPT = "kept in evaluation mode by the model's own train()"


def kept_in_evaluation(model: nn.Module) -> frozenset[int]:
    """Return the identities of the modules that ``model.train()`` leaves in evaluation mode.

    Whatever mode the model is in now. A ``train()`` may do more than set modes, such as merge
    weights or switch gradients off. So it is called on a skeleton: the same classes, attributes
    and modes, with tensors that have no values, or copies where it fails on those. Not called where
    no module overrides it. One that fails then counts as keeping nothing.

    >>> class Backbone(nn.Sequential):
    ...     def train(self, mode=True):
    ...         super().train(mode)
    ...         self[0].eval()
    ...         return self
    >>> model = Backbone(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    >>> [id(layer) in kept_in_evaluation(model) for layer in model]
    [True, False]
    """
    if not any(_overrides_train(module) for module in model.modules()):
        return frozenset()
    with preserve_modes(model), torch.no_grad():
        # With values, in copies, only where one asks for them.
        for with_values in (False, True):
            with contextlib.suppress(Exception):
                copies = _skeleton(model, with_values)
                copies[id(model)].train()
                return frozenset(key for key, copy in copies.items() if not copy.training)
    return frozenset()


def _skeleton(model: nn.Module, with_values: bool) -> dict[int, nn.Module]:
    """Copy each module's class, attributes and mode; by the identity of the module."""
    modules = list(_all_modules(model))
    copies = {id(module): _blank(module) for module in modules}
    tensors: dict[int, Tensor] = {}
    for module in modules:
        _fill(copies[id(module)], module, copies, tensors, with_values)
    return copies


def _overrides_train(module: nn.Module) -> bool:
    cls: Any = base_class(type(module))
    return cls.train is not nn.Module.train or "train" in vars(module)


def _all_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield each module once, also those in plain attributes, which an overridden train() uses."""
    visited: set[int] = set()
    stack = [model]
    while stack:
        module = stack.pop()
        if id(module) in visited:
            continue
        visited.add(id(module))
        yield module
        for value in (*vars(module).values(), module._modules):
            items = value.values() if isinstance(value, (dict, OrderedDict)) else (
                value if isinstance(value, (list, tuple)) else (value,)
            )  # fmt: skip
            stack += [item for item in items if isinstance(item, nn.Module)]


def _blank(module: nn.Module) -> nn.Module:
    # A graph module compiles itself when its attributes are set, for its whole class.
    if isinstance(module, (fx.GraphModule, torch.jit.ScriptModule)):
        return nn.Module()
    blank: nn.Module = object.__new__(base_class(type(module)))
    return blank


def _fill(
    copy: nn.Module,
    module: nn.Module,
    copies: dict[int, nn.Module],
    tensors: dict[int, Tensor],
    with_values: bool,
) -> None:
    """Give ``copy`` the attributes of ``module``, with copies of its modules and tensors."""

    def counterpart(value: Any, depth: int = 3) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in tensors:
                tensors[id(value)] = _copy_tensor(value, with_values)
            return tensors[id(value)]
        if isinstance(value, MethodType):
            owner = copies.get(id(value.__self__))
            return value if owner is None else MethodType(value.__func__, owner)
        if depth and type(value) in (dict, OrderedDict):
            return type(value)((key, counterpart(one, depth - 1)) for key, one in value.items())
        if depth and type(value) in (list, tuple, set):
            return type(value)(counterpart(one, depth - 1) for one in value)
        return copies.get(id(value), value)

    attributes: dict[str, Any] = vars(module)
    if type(copy) is nn.Module:
        scripted = isinstance(module, torch.jit.ScriptModule)
        children = {} if scripted else module._modules
        attributes = {"_modules": children, "training": module.training}
    vars(copy).update({name: counterpart(value) for name, value in attributes.items()})
    if isinstance(module, FrozenMixin):
        vars(copy)["training"] = module._requested_mode


def _copy_tensor(tensor: Tensor, with_values: bool) -> Tensor:
    if nn.parameter.is_lazy(tensor):
        return tensor
    copy = (
        tensor.detach().clone()
        if with_values
        else torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    )
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copy, requires_grad=tensor.requires_grad)
    return copy
