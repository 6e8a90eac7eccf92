"""ATen's own fused normalization kernels, for the pools and layouts that have one.

Activation and residual follow in place, so one layer costs one pass over memory more than the
bare kernel. Whatever ATen has no kernel for goes to :mod:`normkit.kernels.aten`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import as_ncs
from normkit.kernels.contract import Forward, Gradients

__all__ = ["Native"]

_ops = torch.ops.aten
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Native:
    """See the module's docstring and :class:`normkit.kernels.contract.Backend`."""

    name = "native"
    keeps_output = True

    def refuses(self, x: Tensor, spec: Spec) -> str | None:
        if not spec.centred:
            return "ATen has no fused kernel without centring on every device"
        if spec.pool.over in ("position", "ghost"):
            return f"ATen has no kernel for pools over {spec.pool.over}"
        if x.numel() == 0:
            return "the input is empty"
        if spec.pool.over == "group" and x.dim() > 2 and spec.pool.groups == x.shape[1]:
            # native_group_norm's backward multiplies x itself, not x − μ.
            return "ATen's kernel with a group for each channel loses digits far from zero"
        if x.is_contiguous():
            return None
        if _format(x) is None:
            return "ATen's kernel would copy an input of these strides"
        if spec.pool.over == "group" and x.device.type != "cpu":
            return "off the CPU ATen's kernel turns channels-last into contiguous"
        return None

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        stats: tuple[Tensor, Tensor] | None,
        spec: Spec,
    ) -> Forward:
        n, c, s = as_ncs(x)
        shape = spec.pool.stats(n, c, s)
        if spec.pool.over == "batch":
            if stats is not None:
                z = _by_given(x, weight, bias, *stats, spec.eps)
                mean, var = stats
                rstd = torch.rsqrt(var + spec.eps)
            else:
                z, mean, var, rstd = _by_batch(x, weight, bias, spec.eps)
        else:
            z, mean, rstd = _by_group(x, weight, bias, spec)
            var = (rstd.pow(-2) - spec.eps).clamp_min_(0)
        z = _finish(z, residual, spec)
        return Forward(z, mean.reshape(shape), var.reshape(shape), rstd.reshape(shape))

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        own_stats: bool,
        needs: tuple[bool, bool, bool, bool],
        spec: Spec,
        reduce: Any = None,
    ) -> Gradients:
        n, c, s = as_ncs(x)
        batch, groups = spec.pool.over == "batch", spec.pool.groups
        dz = dy
        if spec.act is not None and y is not None:
            dz = spec.act.backward_from_output(dy, y)
        elif spec.act is not None:
            # ε is in r already.
            z = _by_given(x, weight, bias, mean, rstd.pow(-2), 0.0) if batch else None
            z = _by_group(x, weight, bias, spec)[0] if z is None else z
            dz = spec.act.backward(dy, z if residual is None else z.add_(residual))
        gamma = _affine(weight, c, x)
        mask = [needs[0], needs[1] and weight is not None, needs[2] and bias is not None]
        dx = dweight = dbias = None
        if any(mask):
            laid = dz.contiguous(memory_format=_format(x) or torch.contiguous_format)
            if batch:
                mean, rstd = mean.reshape(c), rstd.reshape(c)
                running = (None, None) if own_stats else (mean, rstd.pow(-2))
                dx, dweight, dbias = _ops.native_batch_norm_backward(
                    laid, x, gamma, *running, mean, rstd, own_stats, 0.0, mask
                )
            elif _is_layer(spec, s):
                mean, rstd = mean.reshape(n, 1), rstd.reshape(n, 1)
                dx, dweight, dbias = _ops.native_layer_norm_backward(
                    laid.reshape(n, c), x.reshape(n, c), [c], mean, rstd, gamma, gamma, mask
                )
            else:
                mean, rstd = mean.reshape(n, groups), rstd.reshape(n, groups)
                dx, dweight, dbias = _ops.native_group_norm_backward(
                    laid, x, mean, rstd, gamma, n, c, s, groups, mask
                )
        return Gradients(
            _like(dx, x if mask[0] else None),
            _like(dweight, weight if mask[1] else None),
            _like(dbias, bias if mask[2] else None),
            _like(dz, x if needs[3] else None),
        )


def _format(x: Tensor) -> torch.memory_format | None:
    """The memory format ``x`` is dense in, or None."""
    if x.is_contiguous():
        return torch.contiguous_format
    last = _CHANNELS_LAST.get(x.dim())
    return last if last is not None and x.is_contiguous(memory_format=last) else None


def _is_layer(spec: Spec, s: int) -> bool:
    return s == 1 and spec.pool.groups == 1


def _affine(v: Tensor | None, c: int, x: Tensor, neutral: float = 1.0) -> Tensor | None:
    """γ or β as the kernels want it: C elements of the accumulator's type.

    With parameters of a half type, or none, they would keep the moments in the half type too.
    """
    acc = accumulator(x.dtype)
    if v is not None:
        return v.reshape(c).to(acc)
    return None if acc == x.dtype else torch.full((c,), neutral, dtype=acc, device=x.device)


def _by_given(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """γ·x̂ + β by given moments per channel."""
    c = x.shape[1]
    gamma, beta = _affine(weight, c, x), _affine(bias, c, x, 0.0)
    mean, var = mean.reshape(c), var.reshape(c)
    return torch.native_batch_norm(x, gamma, beta, mean, var, False, 0.0, eps)[0]


def _by_batch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """γ·x̂ + β by the batch's own moments; mean, biased variance, reciprocal deviation."""
    n, c, s = as_ncs(x)
    gamma, beta = _affine(weight, c, x), _affine(bias, c, x, 0.0)
    # With a momentum of 1 the kernel hands over its moments as they are. To find the variance
    # from r would lose it where it is small against ε.
    moments = torch.zeros(2, c, dtype=accumulator(x.dtype), device=x.device)
    z, mean, rstd = torch.native_batch_norm(x, gamma, beta, moments[0], moments[1], True, 1.0, eps)
    return z, mean, moments[1].mul_((n * s - 1) / (n * s)), rstd


def _by_group(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor, Tensor]:
    """γ·x̂ + β by moments within the sample; mean and reciprocal deviation."""
    n, c, s = as_ncs(x)
    gamma, beta = _affine(weight, c, x), _affine(bias, c, x, 0.0)
    if _is_layer(spec, s):
        z, mean, rstd = torch.native_layer_norm(x.reshape(n, c), [c], gamma, beta, spec.eps)
        return z.reshape(x.shape), mean, rstd
    return torch.native_group_norm(x, gamma, beta, n, c, s, spec.pool.groups, spec.eps)


def _finish(z: Tensor, residual: Tensor | None, spec: Spec) -> Tensor:
    if residual is not None:
        z.add_(residual)
    return z if spec.act is None else spec.act.apply_(z)


def _like(gradient: Tensor | None, of: Tensor | None) -> Tensor | None:
    """``gradient`` in the shape and type of what it is the gradient of, if it is wanted."""
    return None if gradient is None or of is None else gradient.reshape(of.shape).to(of.dtype)
