"""Observe layers of a model within a block, and restore everything after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from normkit.errors import StatisticsError, message
from normkit.statistics.layers.find import NormLayer
from normkit.statistics.layers.preserve import (
    evaluation_mode,
    preserve_buffers,
    preserve_rng,
    preserve_shards,
    run_eagerly,
)
from normkit.statistics.measuring.observer import Observer, set_tensor

__all__ = ["observing"]

_OBSERVED: set[int] = set()
"""Layers, by identity, that are being observed."""


def _set_attribute(layer: nn.Module, name: str, value: Any) -> None:
    """Set an attribute of a layer itself; None removes it."""
    if value is None:
        vars(layer).pop(name, None)
    else:
        vars(layer)[name] = value


@contextlib.contextmanager
def observing(model: nn.Module, layers: Sequence[NormLayer]) -> Iterator[Observer]:
    """Observe these layers of ``model`` within the block, and restore everything on exit.

    Restores modes, buffers (the tensor objects), hooks and the random state, also after an
    exception or an interruption. Gradients and dropout are off within the block.

    Raises:
        StatisticsError: one of the layers is already being observed.
    """
    observer = Observer(model, layers)
    identities = {id(one.layer) for one in layers}
    if identities & _OBSERVED:
        raise StatisticsError(
            message(
                "one measurement of a model at a time",
                f"a second one of this {type(model).__name__}, started by its batches or its "
                "forward",
                "finish one before starting the other",
            )
        )
    with contextlib.ExitStack() as stack:
        stack.callback(_OBSERVED.difference_update, identities)
        _OBSERVED.update(identities)
        stack.enter_context(preserve_rng())
        stack.enter_context(run_eagerly())
        stack.enter_context(preserve_shards(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(preserve_buffers(model))
        for index, one in enumerate(layers):
            stack.callback(_set_attribute, one.layer, "_stats_updated",
                           vars(one.layer).get("_stats_updated"))  # fmt: skip
            for name, usual in ((one.spec.mean, 0.0), (one.spec.var, 1.0)):
                tensor = getattr(one.layer, name)
                stack.callback(set_tensor, one.layer, name, tensor)
                # For a model that reads the tensor and does not call the layer; but finite, as a
                # step away from NaN is NaN.
                stand_in = torch.where(tensor.isfinite(), tensor, torch.full_like(tensor, usual))
                set_tensor(one.layer, name, stand_in.detach())

            def observe(_: nn.Module, args: Any, kwargs: Any, index: int = index) -> None:
                observer.observe(index, args, kwargs)

            # Registered last, to see the input as other hooks leave it.
            hook = one.layer.register_forward_pre_hook(observe, with_kwargs=True)
            stack.callback(hook.remove)
        yield observer
