"""Groups of processes that synchronized layers share statistics in."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist

from normkit.errors import OptionError, message

__all__ = ["check_group_size", "process_group"]


def check_group_size(size: int) -> None:
    """Raise unless the processes make groups of ``size``, each within a node or of whole nodes.

    Raises:
        OptionError: they do not, or there are none.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise OptionError(
            message(
                "an initialized torch.distributed, whose processes group_size divides into groups",
                f"group_size={size} before init_process_group",
                "call torch.distributed.init_process_group first, or omit group_size",
            )
        )
    world = dist.get_world_size()
    # Set by torchrun on every node.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "0") or 0)
    if world % size:
        fits = [n for n in range(1, world + 1) if world % n == 0]
        _refuse(f"a group_size that divides the {world} processes", size, fits)
    if local and local % size and size % local:
        fits = [n for n in range(1, local + 1) if local % n == 0]
        _refuse(f"groups within a node of {local} processes, or of whole nodes", size, fits)


def process_group(size: int) -> Any:
    """Return this process's group of ``size``; all processes have to call it.

    Ranks that follow each other share a group, as those of a node do.
    """
    group, _ = dist.new_subgroups(size)
    return group


def _refuse(expected: str, size: int, fits: list[int]) -> None:
    choice = ", ".join(map(str, fits))
    raise OptionError(message(expected, f"group_size={size}", f"use one of {choice}"))
