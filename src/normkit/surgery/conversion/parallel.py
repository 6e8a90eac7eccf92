"""Wrappers that keep a list of a model's buffers."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normkit.handle import Step

__all__ = ["list_buffers"]


def list_buffers(model: nn.Module) -> list[Step]:
    """Return steps that let each ``DistributedDataParallel`` in ``model`` list its buffers anew.

    It goes by the number of those that it listed last, and fails where all of them have left. To be
    made before other steps and after them, since undo goes the other way.
    """
    return [
        Step(lambda one=one: _assign(one), lambda one=one: _assign(one))  # type: ignore[misc]
        for one in model.modules()
        if isinstance(one, DistributedDataParallel)
    ]


def _assign(wrapper: DistributedDataParallel) -> None:
    assign = getattr(cast(Any, wrapper), "_assign_modules_buffers", None)
    if assign is not None:
        assign()
