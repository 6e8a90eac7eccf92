"""Another class and other tensors for a layer that stays the same object, and the way back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normkit.handle import Skipped, Step
from normkit.nn.freezing import base_class, frozen_class, is_frozen
from normkit.surgery.modules import added_names, set_class

__all__ = ["NewState", "as_foreign", "state_change"]

# Attributes that only some kinds of batch normalization have.
KIND_ATTRIBUTES = frozenset({"ghost_size", "process_group", "r_max", "d_max", "_last"})


class NewState(NamedTuple):
    """Class and attributes of a layer after a change; its tensors and children, None if they stay.

    ``removed``: attributes that the layer loses, of those that it has. ``frozen``: whether its
    statistics are frozen afterwards; None to leave that as it is.
    """

    cls: type[nn.Module]
    attributes: dict[str, Any]
    parameters: dict[str, Any] | None = None
    buffers: dict[str, Any] | None = None
    removed: frozenset[str] = KIND_ATTRIBUTES
    frozen: bool | None = None
    modules: dict[str, Any] | None = None


def as_foreign(module: nn.Module, twin: nn.Module, new: NewState) -> NewState:
    """Return the state of a layer of another library by that of its ``twin`` here.

    The twin holds its activation, so the modules that applied it leave.
    """
    plain = vars(nn.Module()).keys()
    twins = {k: v for k, v in vars(twin).items() if k not in plain and k not in new.removed}
    parameters = twin._parameters if new.parameters is None else new.parameters
    buffers = twin._buffers if new.buffers is None else new.buffers
    attributes, frozen, removed = {**twins, **new.attributes}, new.frozen, new.removed
    if is_frozen(module) and "running_mean" not in {k for k, b in buffers.items() if b is not None}:
        attributes["training"], frozen = vars(module)["_requested_mode"], False
        removed |= {"_requested_mode"}
    return NewState(new.cls, attributes, parameters, buffers, removed, frozen, {})


def state_change(name: str, module: nn.Module, new: NewState) -> Step:
    """Return the step that gives ``module`` another state."""
    before, was_frozen = base_class(type(module)), is_frozen(module)
    replaced = new.removed | new.attributes.keys()
    # Undo drops what the new class alone knows, also where the layer had it before.
    names = (replaced | added_names(new.cls, before)) & vars(module).keys()
    old = {key: vars(module)[key] for key in names}
    tables = {
        key: (vars(module)[key], table)
        for key, table in (
            ("_parameters", new.parameters), ("_buffers", new.buffers), ("_modules", new.modules),
        )
        if table is not None
    }  # fmt: skip

    def apply(cls: type, remove: Iterable[str], add: dict[str, Any], which: int) -> None:
        # The class first: if a later line fails, undo goes by it.
        frozen = is_frozen(module) if new.frozen is None else (was_frozen, new.frozen)[which]
        set_class(module, frozen_class(cls) if frozen else cls)
        for key in remove:
            vars(module).pop(key, None)
        vars(module).update(add)
        vars(module).update({key: pair[which] for key, pair in tables.items()})

    def undo() -> Skipped | None:
        now = base_class(type(module))
        if now is before and now is not new.cls:
            return None
        if now is not new.cls:
            return Skipped(name, now, "its class was changed again")
        # Of one class before and after, such as ghosts of another size, the attributes tell.
        for key, value in new.attributes.items() if now is before else ():
            if key == "training":  # which anyone may change
                continue
            if vars(module).get(key, value) not in (value, old.get(key)):
                return Skipped(name, now, f"its {key} was changed again")
        device = _device(module)
        apply(before, {*new.attributes, *added_names(now, before)}, old, 0)
        for key in tables if device is not None else ():
            _move(vars(module)[key], device)
        return None

    return Step(lambda: apply(new.cls, replaced, new.attributes, 1), undo)


def _device(module: nn.Module) -> torch.device | None:
    tensors = (*module._parameters.values(), *module._buffers.values())
    return next((t.device for t in tensors if t is not None), None)


def _move(table: dict[str, Any], device: torch.device | None) -> None:
    """Bring tensors that were out of the model to where it was moved meanwhile."""
    for key, tensor in table.items():
        if not isinstance(tensor, Tensor) or tensor.device == device:
            continue
        if isinstance(tensor, nn.Parameter):
            tensor.data = tensor.data.to(device)
        else:
            table[key] = tensor.to(device)
