"""Layers that a model's own ``train()`` keeps in evaluation mode, such as those of a backbone."""

from __future__ import annotations

import contextlib
import copy
import enum
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from normkit.nn.freezing import FrozenMixin, base_class
from normkit.statistics.layers.preserve import preserve_modes

__all__ = ["KEPT", "kept_in_evaluation"]

KEPT = "kept in evaluation mode by the model's own train()"


def kept_in_evaluation(model: nn.Module) -> frozenset[int]:
    """Return the identities of the modules that ``model.train()`` leaves in evaluation mode.

    Whatever mode the model is in now. A ``train()`` may do more than set modes, such as merge
    weights, switch gradients off or swap weights that it keeps elsewhere. So it is called on a
    skeleton: the same classes, attributes and modes, with tensors that have no values and without
    other objects, or with copies of them where it asks for one. Not called where no module
    overrides it. One that fails then counts as keeping nothing, also because it asks for an object
    that has no copy.

    A function set in place of ``train`` may refer to the model itself. Of a module whose mode the
    call sets there, that mode counts; it is restored.

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
    modules = list(_all_modules(model))
    for with_objects, with_values in ((False, False), (True, False), (True, True)):
        with (
            contextlib.suppress(Exception, _AskedForError),
            preserve_modes(nn.ModuleList(modules)),
            torch.no_grad(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # such as that tensors without values load none
            return _in_evaluation(modules, _skeleton(modules, with_objects, with_values))
    return frozenset()


def _in_evaluation(modules: Sequence[nn.Module], copies: dict[int, nn.Module]) -> frozenset[int]:
    """Call the first module's copy's ``train()``, and return which modules are left out of it."""
    eager = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    # A compiled module has the mode of the one inside it, and no attribute for it.
    for module in (one for one in (*eager, *copies.values()) if _flag(one) in vars(one)):
        # As true as before; its type shows whether train() has set it since.
        vars(module)[_flag(module)] = int(vars(module)[_flag(module)])
    copies[id(modules[0])].train()
    evaluating = set()
    for module in modules:
        both = (copies[id(module)], module)
        flags = [vars(one)[_flag(one)] for one in both if _flag(one) in vars(one)]
        if not all([flag for flag in flags if isinstance(flag, bool)] or flags[:1]):
            evaluating.add(id(module))
    return frozenset(evaluating)


def _flag(module: nn.Module) -> str:
    return "_requested_mode" if isinstance(module, FrozenMixin) else "training"


def _skeleton(
    modules: Sequence[nn.Module], with_objects: bool, with_values: bool
) -> dict[int, nn.Module]:
    """Copy each module's class, attributes and mode; by the identity of the module."""
    copies = {id(module): _blank(module) for module in modules}
    memo: dict[int, Any] = dict(copies)
    for module in modules:
        _fill(copies[id(module)], module, memo, with_objects, with_values)
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
    blank: nn.Module,
    module: nn.Module,
    memo: dict[int, Any],
    with_objects: bool,
    with_values: bool,
) -> None:
    """Give ``blank`` the attributes of ``module``, copied.

    Args:
        memo: copies by the identity of what they are of, as for ``copy.deepcopy``.
    """

    def counterpart(value: Any, depth: int = 3) -> Any:
        if id(value) in memo or isinstance(value, _FIXED):
            return memo.get(id(value), value)
        if isinstance(value, Tensor):
            one: Any = _copy_tensor(value, with_values)
        elif isinstance(value, MethodType) and id(value.__self__) in memo:
            return MethodType(value.__func__, memo[id(value.__self__)])
        elif depth and type(value) in (dict, OrderedDict):
            one = type(value)((key, counterpart(each, depth - 1)) for key, each in value.items())
        elif depth and type(value) in (list, tuple, set):
            one = type(value)(counterpart(each, depth - 1) for each in value)
        else:
            return _copy_object(value, memo) if with_objects else _Absent()
        memo[id(value)] = one
        return one

    attributes: dict[str, Any] = vars(module)
    if type(blank) is nn.Module:
        scripted = isinstance(module, torch.jit.ScriptModule)
        children = {} if scripted else module._modules
        attributes = {"_modules": children, "training": module.training}
    vars(blank).update({name: counterpart(value) for name, value in attributes.items()})
    if isinstance(module, FrozenMixin):
        vars(blank)["training"] = bool(module._requested_mode)


_FIXED = (
    bool, int, float, complex, str, bytes, type(None), type, enum.Enum, FunctionType,
    BuiltinFunctionType, ModuleType, torch.dtype, torch.device, torch.Size, torch.memory_format,
)  # fmt: skip
"""Types of what stays as it is, in any module."""


def _copy_object(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # such as a file, a lock or a process group
        return _Absent()


class _AskedForError(BaseException):
    """Raised when an object is missing; no Exception, so that no ``train()`` handles it."""


class _Absent:
    """Stands for an object that ``train()`` should not get to, and can only be handed around."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise _AskedForError

    __getattribute__ = __setattr__ = __delattr__ = __call__ = __bool__ = __len__ = _refuse
    __iter__ = __next__ = __contains__ = __getitem__ = __setitem__ = __delitem__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = __index__ = _refuse
    __enter__ = __exit__ = __int__ = __float__ = __add__ = __radd__ = __repr__ = _refuse


def _copy_tensor(tensor: Tensor, with_values: bool) -> Tensor:
    if nn.parameter.is_lazy(tensor):
        return tensor
    new = (
        tensor.detach().clone()
        if with_values
        else torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    )
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(new, requires_grad=tensor.requires_grad)
    return new
