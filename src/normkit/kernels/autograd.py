"""From a layer's tensors to its output: which way to take, and the only autograd function."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from normkit.core import formula
from normkit.core.formula import Spec
from normkit.core.moments import Moments, accumulator, merge
from normkit.core.pools import as_ncs
from normkit.errors import ShapeError, StatisticsError, explain
from normkit.kernels import fused, native
from normkit.kernels.contract import Backend
from normkit.kernels.dispatch import PORTABLE, choose
from normkit.kernels.modes import transformed
from normkit.kernels.native import Running

__all__ = ["Normalized", "normalize"]


class Normalized(NamedTuple):
    """Output, and the detached moments it was normalized with.

    ``mean`` and ``var`` (biased) have the shape ``pool.stats(N, C, S)`` or as many elements;
    ``values`` is how many values are behind each: an int, or a tensor where they were counted
    across processes. The moments are None where a kernel has put them into the buffers already,
    or takes them within a sample and keeps them to itself.
    """

    y: Tensor
    mean: Tensor | None
    var: Tensor | None
    values: int | Tensor


def normalize(
    x: Tensor,
    spec: Spec,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    stats: tuple[Tensor, Tensor] | None = None,
    group: Any = None,
    running: Running | None = None,
    moments: bool = True,
) -> Normalized:
    """Normalize ``x`` (N, C, \\*) as ``spec`` says.

    Args:
        weight, bias: γ and β, C elements each, or None.
        residual: added before the activation; shape of ``x``.
        stats: mean and variance to use instead of those of ``x``; C elements each, or of the
            shape ``pool.stats(N, C, S)``. They are treated as constants.
        group: process group over which the moments are taken together (``pool`` must be over
            the batch). Every process of the group must make the same calls; a process may
            have no samples.
        running: buffers that a kernel may move on its way, and the share to move them by. Where
            one did, ``mean`` of the result is None; otherwise moving them is the caller's.
        moments: whether the caller looks at ``mean`` and ``var`` of the result; without
            ``running`` only.
    """
    n, c, s = as_ncs(x)
    count: int | Tensor = spec.pool.count(n, c, s)
    wrapped = transformed(x)
    if group is None and not wrapped:
        x = _dense(x)
        wants = moments and running is None and stats is None
        done = fused.normalize(x, spec, weight, bias, residual, stats, running, wants)
        if done is not None:
            return Normalized(*done, count)
    if stats is not None:
        shape, acc = spec.pool.stats(n, c, s), accumulator(x.dtype)
        # Copies, where a backward may need them: the buffers may have moved by then, and the
        # gradient is that of what was computed.
        copy = torch.is_grad_enabled()
        stats = (
            stats[0].to(acc, copy=copy).reshape(shape),
            stats[1].to(acc, copy=copy).reshape(shape),
        )
    if wrapped and group is None:
        mean, var = formula.stats_of(x, spec.pool, spec.centred) if stats is None else stats
        y = formula.normalize(x, spec, weight, bias, residual, mean, var)
        return Normalized(y, mean.detach(), var.detach(), count)
    x = _dense(x)
    backend = choose(x, spec) if group is None else PORTABLE
    if backend is None:
        found = native.normalize(x, spec, weight, bias, residual, stats, running)
        return Normalized(*found, count)
    given = stats or (None, None)
    y, own_mean, own_var, total = _Normalize.apply(
        x, weight, bias, residual, *given, spec, group, backend
    )
    return Normalized(
        y,
        own_mean if stats is None else stats[0],
        own_var if stats is None else stats[1],
        count if total is None else total,
    )


class _Normalize(torch.autograd.Function):
    """Forward and backward by a backend; derivatives of the backward by the plain formula."""

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
        backend: Backend,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        given = None if mean is None or var is None else (mean, var)
        total = None
        stats = given
        if group is not None:
            *shared, total = _shared_stats(x, spec, group)
            stats = (shared[0], shared[1])
        result = backend.forward(x, weight, bias, residual, stats, spec)
        # A view of what only this function saw could not be written over by an nn.ReLU behind.
        y = result.y.data if result.y._is_view() else result.y
        ctx.spec, ctx.group, ctx.total, ctx.backend = spec, group, total, backend
        ctx.own_stats = given is None
        # Without an activation the derivative does not depend on the residual.
        keeps_y = spec.act is not None and spec.act.told_by_output and backend.keeps_output
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
        if given is not None:
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
        if torch.is_grad_enabled():
            return (*_differentiable(ctx, saved, dy, needs), *(None,) * 5)
        x, y, weight, bias, residual, mean, rstd = saved
        reduce = None
        if ctx.group is not None:

            def reduce(sum_g: Tensor, sum_gx: Tensor) -> tuple[Tensor, Tensor]:
                both = torch.stack([sum_g, sum_gx])
                dist.all_reduce(both, group=ctx.group)
                both = both / ctx.total.clamp_min(1).to(both.dtype)
                return both[0], both[1]

        gradients = ctx.backend.backward(
            dy, x, y, weight, bias, residual, mean, rstd, ctx.own_stats, needs, ctx.spec, reduce
        )
        return (*gradients, *(None,) * 5)


def _differentiable(
    ctx: Any, saved: tuple[Tensor | None, ...], dy: Tensor, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    """The gradients once more, as a function that autograd can differentiate again."""
    if ctx.group is not None:
        raise StatisticsError(
            explain(
                "derivatives of the backward pass (create_graph=True) exist within one process",
                "a layer synchronised across processes",
                "use BatchNorm in place of SyncBatchNorm where you need them",
            )
        )
    x, y, weight, bias, residual, mean, rstd = saved
    assert x is not None and mean is not None and rstd is not None
    spec: Spec = ctx.spec
    if y is not None and spec.act is not None:
        # The activation is piecewise linear, and y says which piece.
        dy = spec.act.backward_from_output(dy, y.detach())
        spec = dataclasses.replace(spec, act=None)
    if ctx.own_stats:
        mean, var = formula.stats_of(x, spec.pool, spec.centred)
    else:
        var = rstd.pow(-2) - spec.eps
    z = formula.normalize(x, spec, weight, bias, residual, mean, var)
    return formula.gradients(z, dy, (x, weight, bias, residual), needs, again=True)


def _dense(x: Tensor) -> Tensor:
    """``x`` contiguous or channels-last: as it is if it is either, else as it is nearer to."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if x.is_contiguous() or (last and x.is_contiguous(memory_format=last)):
        return x
    sliced = last is not None and x.stride(1) == 1 and x.shape[1] > 1
    return x.contiguous(memory_format=last if sliced and last else torch.contiguous_format)


def _shared_stats(x: Tensor, spec: Spec, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count per channel over all processes of ``group``.

    Every process computes the merge from the same gathered numbers in the same order, so all end
    with the same bits.
    """
    n, c, s = as_ncs(x)
    own = Moments.of(x.reshape(n, c, s), dim=(0, 2))
    packed = torch.cat([own.mean.double(), own.m2.double(), own.count.reshape(1)])
    gathered = [torch.empty_like(packed) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, packed, group=group)
    merged = merge([Moments(g[-1], g[:c], g[c:-1]) for g in gathered])
    if n * s <= 1 and merged.count == 1:
        # Only then can the total be 1 too, so no device waits for this check otherwise.
        raise ShapeError(
            explain(
                "training needs more than one value per channel over all processes",
                f"{int(merged.count)} value(s) per channel",
                "use larger batches, or evaluation mode",
            )
        )
    shape, acc = spec.pool.stats(n, c, s), accumulator(x.dtype)
    mean, var = merged.mean.to(acc), (merged.m2 / merged.count.clamp_min(1)).to(acc)
    return mean.reshape(shape), var.reshape(shape), merged.count
