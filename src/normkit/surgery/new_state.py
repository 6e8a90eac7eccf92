"""Another class and other tensors for a layer that stays the same object, and the way back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from normkit.handle import Skipped, Step
from normkit.nn.freezing import base_class, frozen_class, is_frozen
from normkit.surgery.modules import added_names, set_class

__all__ = ["NewState", "state_change"]

# Attributes that only some kinds of batch normalization have.
KIND_ATTRIBUTES = {"ghost_size", "process_group", "r_max", "d_max", "_last"}


class NewState(NamedTuple):
    """Class and attributes of a layer after a change; its tensors if they change, else None."""

    cls: type[nn.Module]
    attributes: dict[str, Any]
    parameters: dict[str, Any] | None = None
    buffers: dict[str, Any] | None = None


def state_change(name: str, module: nn.Module, new: NewState) -> Step:
    """Return the step that gives ``module`` another state; a frozen layer stays frozen."""
    before = base_class(type(module))
    replaced = (KIND_ATTRIBUTES | new.attributes.keys()) & vars(module).keys()
    old = {key: vars(module)[key] for key in replaced}
    tables = {
        key: (vars(module)[key], table)
        for key, table in (("_parameters", new.parameters), ("_buffers", new.buffers))
        if table is not None
    }

    def apply(cls: type, remove: Iterable[str], add: dict[str, Any], which: int) -> None:
        # The class first: if a later line fails, undo goes by it.
        set_class(module, frozen_class(cls) if is_frozen(module) else cls)
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
            if vars(module).get(key, value) not in (value, old.get(key)):
                return Skipped(name, now, f"its {key} was changed again")
        apply(before, {*new.attributes, *added_names(now, before)}, old, 0)
        return None

    return Step(lambda: apply(new.cls, old, new.attributes, 1), undo)
