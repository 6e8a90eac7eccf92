"""State dict of a checkpoint whose model has other entries than before."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from normkit.cli.checkpoint import StateDictPart
from normkit.cli.checkpoint_entries import replace_at
from normkit.errors import StatisticsError, message

__all__ = ["replace_state"]


def replace_state(content: Any, part: StateDictPart, model: nn.Module) -> Any:
    """Copy ``content`` with all entries of the model in place of a part's.

    Each keeps the type of its former entry; a bias that is new has that of its layer's weight.
    ``content`` itself does not change.

    Raises:
        StatisticsError: a value is too large for that type.
    """
    entries = part.entries_in(content)
    state: Any = copy.copy(entries)
    former = {k: v for k, v in entries.items() if k.startswith(part.prefix)}
    for name in former:
        del state[name]
    for name, value in model.state_dict().items():
        key = part.prefix + name
        old = former.get(key, former.get(f"{key.rpartition('.')[0]}.weight"))
        if not isinstance(value, Tensor):
            state[key] = value
            continue
        new = value.detach().cpu()
        if isinstance(old, Tensor) and old.is_floating_point() and new.is_floating_point():
            new = new.to(old.dtype)
        if bool(value.isfinite().all()) and not bool(new.isfinite().all()):
            raise StatisticsError(
                message("weights within the range of the checkpoint's type",
                        f"{name} up to {float(value.abs().max()):.3g} for {new.dtype}",
                        "save the checkpoint in float32")
            )  # fmt: skip
        state[key] = new
    return replace_at(content, part.path, state)
