"""Calls of layers in one pass of a model: the axes of their inputs, and further inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import StatisticsError, message
from normkit.statistics.batches.run_model import Forward, run_model
from normkit.statistics.batches.tensors import count_samples
from normkit.statistics.layers.find import unwrap
from normkit.statistics.layers.preserve import (
    evaluation_mode,
    preserve_buffers,
    preserve_rng,
    preserve_shards,
    run_eagerly,
)

__all__ = ["Calls", "as_in_evaluation", "take"]


class Calls:
    """Calls of modules that were seen; without any, nothing is known of them."""

    def __init__(self) -> None:
        self._ranks: dict[int, set[int]] = {}
        self._residual: set[int] = set()
        self._single: set[int] = set()

    @classmethod
    def observe(cls, model: nn.Module, batch: Any, forward: Forward | None) -> Calls:
        """Run ``model`` on ``batch`` in evaluation mode and record the calls of its modules."""
        calls, inner = cls(), unwrap(model)
        with as_in_evaluation(inner), contextlib.ExitStack() as stack:
            for module in inner.modules():
                if not isinstance(module, torch.jit.ScriptModule):
                    hook = module.register_forward_pre_hook(calls._record, with_kwargs=True)
                    stack.callback(hook.remove)
            run_model(inner, batch, forward)
        return calls

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if inputs:
            self._ranks.setdefault(id(module), set()).add(inputs[0].dim())
            if inputs[0].shape[2:].numel() == 1:
                self._single.add(id(module))
        if len(inputs) > 1:
            self._residual.add(id(module))

    def share(self, module: nn.Module, twin: nn.Module) -> None:
        """Let the calls of ``module`` count for ``twin`` too."""
        if id(module) in self._ranks:
            self._ranks[id(twin)] = self._ranks[id(module)]
            self._single |= {id(twin)} if id(module) in self._single else set()

    def __bool__(self) -> bool:
        return bool(self._ranks)

    def ranks(self, module: nn.Module) -> set[int]:
        """Return the numbers of axes of the inputs of ``module``."""
        return self._ranks.get(id(module), set())

    def spatial_axes(self, module: nn.Module) -> int | None:
        """Return the number of spatial axes of its inputs; None if unknown or of several."""
        axes = {max(rank - 2, 1) for rank in self.ranks(module)}
        return axes.pop() if len(axes) == 1 else None

    def without_positions(self, module: nn.Module) -> bool:
        """Return True if an input of ``module`` had one value for each channel and sample."""
        return id(module) in self._single

    def with_residual(self, module: nn.Module) -> bool:
        """Return True if ``module`` was called with two tensors."""
        return id(module) in self._residual


@contextlib.contextmanager
def as_in_evaluation(model: nn.Module) -> Iterator[None]:
    """Run ``model`` in evaluation mode, without gradients, and restore everything else on exit."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserve_rng())
        stack.enter_context(run_eagerly())
        stack.enter_context(preserve_shards(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(preserve_buffers(model))
        yield


def take(batches: Iterable[Any], samples: int | None) -> list[Any]:
    """Keep batches up to the one that reaches ``samples`` in all, or all for None.

    Raises:
        StatisticsError: there is none.
    """
    stored: list[Any] = []
    count = 0
    with preserve_rng():  # from which loaders draw their order
        for batch in batches:
            stored.append(batch)
            count += count_samples(batch) or 1
            if samples is not None and count >= samples:
                break
    if not stored:
        raise StatisticsError(
            message("at least one batch", "batches without any", "pass a list or a DataLoader")
        )
    return stored
