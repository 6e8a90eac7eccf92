r"""Rows whose node keeps the output in place of the input.

With y = γ·x̂ + β, the centred input is x − μ = (y − β)/(γ·r), so the backward pass needs y and r
alone. The layer after it keeps y in any case, and x, such as the sum of a residual stream, is often
kept by nobody else.

What rounding took from y is divided by γ: the error of x̂ is that of y's type times (|x̂| + |β/γ|).
Where that is large, or γ has zeros, the output does not tell the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit.core import formula
from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.errors import OptionError, message
from normkit.kernels import cpu, fused, operations
from normkit.kernels.aten import Aten
from normkit.kernels.modes import batched, differentiates, transformed
from normkit.kernels.wide import beyond_float32

__all__ = ["rows_from_output", "tells_input"]

# The largest |β/γ|: an error of x̂, which is about 1, of five roundings more.
_LARGEST = 4.0


def tells_input(weight: Tensor | None, bias: Tensor | None) -> bool:
    """Return whether an output with γ and β tells x̂ with little more than its own rounding.

    >>> tells_input(torch.ones(2), torch.tensor([0.5, 2.0])), tells_input(torch.zeros(2), None)
    (True, False)
    """
    if weight is None:
        return True
    with torch.no_grad():
        gamma = weight.detach().abs()
        beta = torch.zeros_like(gamma) if bias is None else bias.detach().abs()
        # 1/γ must not overflow either.
        limits = torch.finfo(weight.dtype)
        usable = (gamma > limits.tiny**0.5) & (gamma <= limits.max)
        return bool((usable & (beta <= _LARGEST * gamma)).all())


def rows_from_output(
    x: Tensor, spec: Spec, weight: Tensor | None, bias: Tensor | None
) -> Tensor | None:
    """Normalize rows (N, C) so that y is kept, or return None where x has to be.

    None too where nothing is differentiated, or something looks into the call.
    """
    if (
        spec.act is not None
        or not differentiates(x, weight, bias)
        or transformed(x, weight, bias)
        or x.numel() == 0
        or not tells_input(weight, bias)
    ):
        return None
    y: Tensor | None = _FromOutput.apply(x, weight, bias, spec)
    return y


def _fused(*tensors: Tensor | None) -> bool:
    plain = all(t is None or (t.is_cpu and t.dtype in fused.FLOATS) for t in tensors)
    return cpu.fused is not None and operations.available and plain


def _options(spec: Spec) -> tuple[int, int, float, int, float, bool]:
    number, slope = fused.act_numbers(None)
    return fused.POOLS["group"], 1, spec.eps, number, slope, spec.centred


class _FromOutput(torch.autograd.Function):
    """Normalize rows; the backward pass reads the output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, spec: Spec
    ) -> Tensor | None:
        y: Tensor
        if _fused(x, weight, bias):
            operation = torch.ops.normkit.normalize_forward
            y, stats = operation(x, weight, bias, None, *_options(spec))
            rstd = stats[2].clone()
        else:
            result = Aten().forward(x, weight, bias, None, None, spec)
            y, rstd = result.y, result.rstd.reshape(-1)
        if beyond_float32(rstd):
            return None
        y = y.data if y._is_view() else y
        ctx.spec = spec
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, weight, bias, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * 4
        y, weight, bias, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            raise OptionError(
                message(
                    "gradients that are not differentiated again, of a layer with "
                    "memory_efficient=True",
                    "create_graph=True",
                    "set layer.memory_efficient = False",
                )
            )
        needs = (*ctx.needs_input_grad[:3], False)
        spec: Spec = ctx.spec
        acc = accumulator(y.dtype)
        # The input, but for its mean, which no gradient depends on.
        x = y.to(acc)
        if bias is not None:
            x = x - bias.to(acc).reshape(-1)
        if weight is not None:
            x = x / weight.to(acc).reshape(-1)
        x = x / rstd[:, None]
        if batched(dy):
            with torch.enable_grad():
                leaves = [None if t is None else t.detach().requires_grad_()
                          for t in (x, weight, bias)]  # fmt: skip
                inputs: Any = (*leaves, None)
                dz = dy.to(acc)
                dx, dw, db, _ = formula.gradients(inputs, None, None, dz, needs, spec, False)
        elif _fused(dy, weight, bias):
            zero = torch.zeros_like(rstd)
            dx, dw, db, _ = torch.ops.normkit.normalize_backward(
                dy.to(acc), x, weight, bias, None, torch.stack([zero, zero, rstd]), False,
                sum(need << i for i, need in enumerate(needs)), *_options(spec),
            )  # fmt: skip
        else:
            mean, r = torch.zeros_like(rstd), rstd.reshape(-1, 1, 1, 1)
            dx, dw, db, _ = Aten().backward(
                dy.to(acc), x, None, weight, bias, None, mean.reshape(r.shape), r, True, needs, spec
            )
        results = (dx if needs[0] else None, dw if needs[1] else None, db if needs[2] else None)
        if results[0] is not None:
            results = (results[0].to(y.dtype), *results[1:])
        return (*results, None)
