"""Another class for a layer that stays the same object, and the way back."""

from __future__ import annotations

from torch import nn

from normkit.handle import Skipped, Step
from normkit.nn.foreign import original_class
from normkit.nn.freezing import base_class, frozen_class, is_frozen
from normkit.surgery.modules import added_names, set_class

__all__ = ["class_change"]


def class_change(name: str, module: nn.Module, after: type) -> Step:
    """Return the step that gives ``module`` the class ``after``; a frozen layer stays frozen."""
    before = base_class(type(module))
    foreign = original_class(after) is not after

    def do() -> None:
        set_class(module, frozen_class(after) if is_frozen(module) else after)

    def undo() -> Skipped | None:
        ours: type | None = after
        theirs: type | None = before
        cls = base_class(type(module))
        if cls is before:
            return None
        if cls is getattr(after, "cls_to_become", None):  # lazy, and initialized since
            ours = after.cls_to_become  # type: ignore[attr-defined]
            theirs = before.cls_to_become  # type: ignore[attr-defined]
        if cls is not ours or theirs is None:
            return Skipped(name, cls, "its class was changed again")
        added = added_names(ours, theirs) | ({"_stats_updated"} if foreign else set())
        for key in added & vars(module).keys():
            del vars(module)[key]
        set_class(module, frozen_class(theirs) if is_frozen(module) else theirs)
        return None

    return Step(do, undo)
