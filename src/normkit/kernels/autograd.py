"""One autograd function: any :class:`normkit.kernels.contract.Pair` with its graph."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normkit.core import formula
from normkit.core.formula import Spec
from normkit.core.moments import Moments, accumulator, merge
from normkit.core.pools import as_ncs
from normkit.errors import ShapeError, StatisticsError, message
from normkit.kernels.call import Call, Normalized, dense
from normkit.kernels.contract import Pair
from normkit.kernels.modes import batched
from normkit.kernels.outputs import listening, offer

__all__ = ["run_pair"]


def run_pair(pair: Pair, call: Call) -> Normalized:
    """Compute ``call`` by ``pair``, over the processes of its group if it has one."""
    x, spec = dense(call.x), call.spec
    fixed = call.fixed_moments()
    y, mean, var, total = _Normalize.apply(
        x, call.weight, call.bias, call.residual, *(fixed or (None, None)), spec, call.group, pair
    )
    mean, var = fixed or (mean, var)
    if listening.listener is not None:
        # Of the values again where they alone gave the moments: rounded ones give other bits.
        again = (mean, var) if fixed or call.group is not None else None

        def repeat(x: Tensor, *others: Tensor | None) -> Tensor:
            weight, bias, residual = others
            return pair.forward(x, weight, bias, residual, again, spec).y

        offer(y, x, call.weight, call.bias, call.residual, repeat)
    return Normalized(y, mean, var, spec.pool.count(*as_ncs(x)) if total is None else total)


class _Normalize(torch.autograd.Function):
    """Forward and backward by a pair; derivatives of the backward by the formula."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        spec: Spec,
        group: Any,
        pair: Pair,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        fixed = None if mean is None or var is None else (mean, var)
        stats, total = fixed, None
        if group is not None:
            *pooled, total = _stats_over(group, x, spec)
            stats = (pooled[0], pooled[1])
        result = pair.forward(x, weight, bias, residual, stats, spec)
        # A following nn.ReLU(inplace=True) could not write over a view made in here.
        y = result.y.data if result.y._is_view() else result.y
        ctx.spec, ctx.group, ctx.total, ctx.pair = spec, group, total, pair
        ctx.own_stats = fixed is None
        # Without an activation the derivative does not depend on the residual.
        keeps_y = spec.act is not None and spec.act.derivative_from_output and pair.keeps_output
        keeps_residual = spec.act is not None and not keeps_y
        ctx.save_for_backward(
            x,
            y if keeps_y else None,
            weight,
            bias,
            residual if keeps_residual else None,
            result.mean,
            result.rstd,
        )
        ctx.set_materialize_grads(False)
        if fixed is not None:
            return y, None, None, None
        ctx.mark_non_differentiable(result.mean, result.var)
        if total is not None:
            ctx.mark_non_differentiable(total)
        return y, result.mean, result.var, total

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * 9
        # Once: under a saved-tensor hook, such as a checkpoint's, a second look is refused.
        saved = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[:4])
        # The pairs write over tensors, which batched gradients do not fit into.
        if torch.is_grad_enabled() or batched(dy):
            return (*_differentiable(ctx, saved, dy, needs), *(None,) * 5)
        x, y, weight, bias, residual, mean, rstd = saved
        reduce = None
        if ctx.group is not None:

            def reduce(sum_g: Tensor, sum_gx: Tensor) -> tuple[Tensor, Tensor]:
                both = torch.stack([sum_g, sum_gx])
                dist.all_reduce(both, group=ctx.group)
                both = both / ctx.total.clamp_min(1).to(both.dtype)
                return both[0], both[1]

        gradients = ctx.pair.backward(
            dy, x, y, weight, bias, residual, mean, rstd, ctx.own_stats, needs, ctx.spec, reduce
        )
        return (*gradients, *(None,) * 5)


def _differentiable(
    ctx: Any, saved: tuple[Tensor | None, ...], dy: Tensor, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    """Compute the gradients as a function that autograd can differentiate again, or batch."""
    if ctx.group is not None:
        raise StatisticsError(
            message(
                "derivatives of the backward pass (create_graph=True) within one process",
                "a layer synchronised across processes",
                "use BatchNorm in place of SyncBatchNorm where you need them",
            )
        )
    x, y, weight, bias, residual, mean, rstd = saved
    assert x is not None and mean is not None and rstd is not None
    fixed = None if ctx.own_stats else (mean, rstd)
    inputs = (x, weight, bias, residual)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        return formula.gradients(inputs, y, fixed, dy, needs, ctx.spec, again)


def _stats_over(group: Any, x: Tensor, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, biased variance and count per channel over all processes of ``group``.

    Every process computes the merge from the same gathered numbers in the same order, so all end
    with the same bits.
    """
    n, c, s = as_ncs(x)
    local = Moments.of(x.reshape(n, c, s), dim=(0, 2))
    packed = torch.cat([local.mean.double(), local.m2.double(), local.count.reshape(1)])
    gathered = [torch.empty_like(packed) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, packed, group=group)
    merged = merge([Moments(g[-1], g[:c], g[c:-1]) for g in gathered])
    if n * s <= 1 and merged.count == 1:
        # Only then can the total be 1, so no device waits for this check otherwise.
        raise ShapeError(
            message(
                "more than one value per channel over all processes in training",
                f"{int(merged.count)} value(s) per channel",
                "use larger batches, or evaluation mode",
            )
        )
    shape, acc = spec.pool.stats(n, c, s), accumulator(x.dtype)
    mean, var = merged.mean.to(acc), (merged.m2 / merged.count.clamp_min(1)).to(acc)
    return mean.reshape(shape), var.reshape(shape), merged.count
