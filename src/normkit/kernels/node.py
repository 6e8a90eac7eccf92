"""Autograd function for kernels that return their moments as stats (4, pools).

These are mean, what rounding took from it, 1/√(σ² + ε) and biased variance. An :class:`Engine`
computes them: operations of PyTorch's dispatcher, or kernels called from Python.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from normkit.core.activations import Act
from normkit.kernels import fused
from normkit.kernels.call import Running
from normkit.kernels.modes import batched, differentiates
from normkit.kernels.outputs import listening, offer

__all__ = ["Constants", "Engine", "Options", "normalize"]

Options = tuple[int, int, float, int, float, bool]
"""Pool, groups, ε, activation, slope, centred: by their numbers, as in the schemas."""

_RELU6, _ = fused.act_numbers(Act("relu6"))


class Constants(NamedTuple):
    """Tensors of a call that have no gradient.

    Args:
        fixed: stats to normalize with.
        update: buffers to update, which the kernels write to.
    """

    fixed: Tensor | None = None
    update: Running | None = None


class Engine(Protocol):
    """Forward and backward pass on detached tensors."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        constants: Constants,
        options: Options,
    ) -> tuple[Tensor, Tensor]:
        """Return the output and the stats."""
        ...

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        other: Tensor | None,
        stats: Tensor,
        other_is_output: bool,
        needs: tuple[bool, bool, bool, bool],
        own_stats: bool,
        options: Options,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight, bias and residual; only those marked are looked at.

        ``other``: the output or the residual, where there is an activation. ``own_stats``: the
        stats are those of ``x``, so that they have a gradient.
        """
        ...


def normalize(
    engine: Engine,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    constants: Constants,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Return the output and the stats, with a graph where one is recorded."""
    if not differentiates(x, weight, bias, residual):
        return engine.forward(x, weight, bias, residual, constants, options)
    y, stats = _Normalize.apply(x, weight, bias, residual, constants, options, engine)
    if listening.listener is not None:
        again = Constants(fixed=stats)

        def repeat(x: Tensor, *others: Tensor | None) -> Tensor:
            weight, bias, residual = others
            return engine.forward(x, weight, bias, residual, again, options)[0]

        offer(y, x, weight, bias, residual, repeat)
    return y, stats


class _Normalize(torch.autograd.Function):
    """Forward and backward, as the C++ kernels' own node has them (``torch_node.h``)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        constants: Constants,
        options: Options,
        engine: Engine,
    ) -> tuple[Tensor, Tensor]:
        y, stats = engine.forward(x, weight, bias, residual, constants, options)
        _, _, _, act, slope, _ = options
        ctx.engine, ctx.options, ctx.own_stats = engine, options, constants.fixed is None
        # What torch_forward.h saves: the next layer keeps the output anyway, but perhaps nothing
        # keeps the residual.
        ctx.has_act = act != 0 or slope != 1
        from_output = act == _RELU6 or (act == 0 and slope >= 0)
        ctx.other_is_output = residual is not None and ctx.has_act and from_output
        other = y if ctx.other_is_output else residual if ctx.has_act else None
        ctx.save_for_backward(x, weight, bias, other, stats)
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return y, stats

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Any, ...]:
        needs, others = ctx.needs_input_grad[:4], (None,) * 3
        if dy is None:
            return (*(None,) * 4, *others)
        x, weight, bias, other, stats = ctx.saved_tensors
        if torch.is_grad_enabled() or batched(dy):
            y, residual = (other, None) if ctx.other_is_output else (None, other)
            inputs, options = (x, y, weight, bias, residual, stats), (*ctx.options, 0)
            grads = fused.differentiable(dy, *inputs, ctx.own_stats, needs, options)
            return (*grads, *others)
        # Without an activation the residual's gradient is dy, which no operation may return.
        computed = (*needs[:3], needs[3] and ctx.has_act)
        results = ctx.engine.backward(
            dy, x, weight, bias, other, stats, ctx.other_is_output, computed, ctx.own_stats,
            ctx.options,
        )  # fmt: skip
        grads = [g if need else None for g, need in zip(results, computed, strict=True)]
        if needs[3] and not ctx.has_act:
            grads[3] = dy
        return (*grads, *others)
