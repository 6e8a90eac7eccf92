"""A tool that returns a handle: refusals, what it prints and names, and ``undo``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from torch import nn

from tests.sweep.fault import Fault
from tests.sweep.program import Built
from tests.sweep.snapshot import differences, snapshot
from tests.sweep.trial import Outcome, attempt, check_words

__all__ = ["Cases", "is_named", "names_in", "use_handle"]

Cases = st.SearchStrategy[Any]


def use_handle(
    tool: str, built: Built, call: Callable[[], Any], lost: tuple[str, ...] = ()
) -> Outcome:
    """Call a tool that returns a handle; check refusals, what is printed, and ``undo``.

    The call is made, undone and made again. ``lost``: endings of what undo need not restore.
    """
    before = snapshot(built.model)
    outcome = attempt(tool, call)
    if outcome.result is None:
        if changed := differences(before, snapshot(built.model)):
            raise Fault(tool, "refused and changed", f"{changed[:4]} after {outcome.error}")
        return outcome
    check_words(tool, repr(outcome.result))
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        outcome.result.undo()
    if noted:
        raise Fault(tool, "undo warns", str(noted[0].message))
    changed = [k for k in differences(before, snapshot(built.model)) if not k.endswith(lost)]
    if changed:
        raise Fault(tool, "undo is not exact", str(changed[:4]))
    return attempt(tool, call)


def names_in(handle: Any) -> tuple[set[str], dict[str, str]]:
    return {row.name for row in handle.changed}, {row.name: row.why for row in handle.skipped}


def is_named(model: nn.Module, name: str, names: Any) -> bool:
    """Return True if a layer is among those named, by whichever of its names."""
    layer = model.get_submodule(name)
    return any(layer is model.get_submodule(other) for other in names)
