"""Copies of a checkpoint with other values in place of some of its entries."""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normkit.cli.checkpoint import StateDictPart
from normkit.errors import StatisticsError, message
from normkit.statistics.layers.find import COUNTER, named_stats

__all__ = ["replace_at", "replace_entries", "replace_stats"]


def replace_stats(content: Any, part: StateDictPart, model: nn.Module) -> Any:
    """Copy ``content`` with the model's current running statistics in place of the old ones.

    Each keeps its type and place; entries that shared a tensor share one again. ``content``
    itself does not change.

    Raises:
        StatisticsError: a layer's statistics are not in its state dict, or too large for the type
            of the old ones.
    """
    return replace_entries(content, part, named_stats(model))


def replace_entries(
    content: Any, part: StateDictPart, values: Mapping[str, Tensor], widened: Container[str] = ()
) -> Any:
    """Copy ``content`` with other values in place of entries, which are named as in the model.

    Args:
        widened: names of entries that get the type of their new value.

    Raises:
        StatisticsError: as :func:`replace_stats`.
    """
    state = copy.copy(part.entries_in(content))
    new: dict[Any, Tensor] = {}
    for name, value in values.items():
        old = state.get(part.prefix + name)
        if old is None and name.endswith(COUNTER):
            continue  # a file of a former version of torch, which had no counters
        if not isinstance(old, Tensor):
            raise StatisticsError(
                message(
                    "running statistics in the state dict",
                    f"no entry {name}",
                    "make it a persistent buffer of its layer",
                )
            )
        dtype = value.dtype if name in widened else old.dtype
        storage = (old.untyped_storage().data_ptr(), old.storage_offset(), old.shape, old.stride())
        # Shared still, where the new values are the same too.
        if storage not in new or not torch.equal(new[storage], value.to(new[storage])):
            new[storage] = torch.empty_like(old, dtype=dtype).copy_(value)
            if not bool(new[storage].isfinite().all()) and bool(value.isfinite().all()):
                raise StatisticsError(
                    message(
                        "statistics within the range of the checkpoint's type",
                        f"{name} up to {float(value.abs().max()):.3g} for {old.dtype}",
                        "save the checkpoint with its buffers in float32",
                    )
                )
        state[part.prefix + name] = new[storage]  # type: ignore[index]
    return replace_at(content, part.path, state)


def replace_at(content: Any, path: tuple[str, ...], state: Any) -> Any:
    """Copy ``content`` with ``state`` in place of what is at ``path``."""
    if not path:
        return state
    new = copy.copy(content)
    new[path[0]] = replace_at(content[path[0]], path[1:], state)
    return new
