"""Portable way: elementary ATen operations, any device, any floating type.

For the pools, layouts and process groups that PyTorch has no fused kernel for. Each line below
that touches the whole tensor is one pass over memory; those in place are the cheap ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import as_ncs
from normkit.kernels.autograd import run_pair
from normkit.kernels.call import Call, FixedStats, Normalized
from normkit.kernels.contract import Forward, Gradients
from normkit.kernels.wide import beyond_float32, has_wider_stats, in_float64, may_exceed

__all__ = ["Aten", "Portable"]


class Portable:
    """Take every call, also those whose moments span several processes."""

    name = "portable operations"

    def refuses(self, call: Call) -> str | None:
        return None

    def run(self, call: Call) -> Normalized:
        if has_wider_stats(call):
            return in_float64(self.run, call)
        result = run_pair(Aten(), call)
        if result.var is None or isinstance(call.stats, FixedStats) or not may_exceed(call):
            return result
        beyond = beyond_float32(torch.rsqrt(result.var + call.spec.eps))
        return in_float64(self.run, call) if beyond else result


class Aten:
    """Forward and backward as :class:`normkit.kernels.contract.Pair` describes them."""

    keeps_output = True

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
        pool, acc = spec.pool, accumulator(x.dtype)
        x4 = x.reshape(pool.view(n, c, s))
        if stats is not None:
            mean, var = stats
            z = x4 - mean
        elif pool.count(n, c, s) == 0:
            mean = var = torch.zeros(pool.stats(n, c, s), dtype=acc, device=x.device)
            z = x4.to(acc, copy=True)
        elif spec.centred:
            mean = x4.mean(pool.dims, keepdim=True, dtype=acc)
            z = x4 - mean
            # What rounding took from the mean matters where it is large against the deviation.
            # Corrected two-pass: Chan, Golub & LeVeque 1979.
            rounding = z.mean(pool.dims, keepdim=True)
            var = z.sub_(rounding).square().mean(pool.dims, keepdim=True)
            mean = mean + rounding
        else:
            mean = torch.zeros(pool.stats(n, c, s), dtype=acc, device=x.device)
            z = None
            var = x4.to(acc).square().mean(pool.dims, keepdim=True)
        rstd = torch.rsqrt(var + spec.eps)
        if z is None:
            z = x4.to(acc, copy=True)
        _affine_(z, rstd, weight, bias, residual, spec, c)
        if spec.act is not None:
            z = spec.act.apply_(z)
        return Forward(_shaped(z, x), mean, var, rstd)

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
        pool, acc = spec.pool, accumulator(x.dtype)
        view, params = pool.view(n, c, s), pool.params(c)
        x4 = x.reshape(view)
        xc = x4 - mean if spec.centred else x4.to(acc)
        gamma = None if weight is None else weight.reshape(params).to(acc)
        dz = dy.reshape(view).to(acc)
        if spec.act is not None and y is not None:
            dz = spec.act.backward_from_output(dz, y.reshape(view))
        elif spec.act is not None:
            z = xc.clone()
            _affine_(z, rstd, weight, bias, residual, spec, c)
            dz = spec.act.backward(dz, z)

        need_x, need_w, need_b, need_r = needs
        dx = dweight = dbias = None
        need_sums = need_w or need_b or (need_x and own_stats)
        if need_sums:
            sum_dz, sum_dzx = _sum(dz, pool.shared_dims), _sum(dz * xc, pool.shared_dims)
            param_only = tuple(d for d in pool.param_dims if d not in pool.shared_dims)
            if need_w and weight is not None:
                dweight = _sum(sum_dzx * rstd, param_only).reshape(weight.shape).to(weight.dtype)
            if need_b and bias is not None:
                dbias = _sum(sum_dz, param_only).reshape(bias.shape).to(bias.dtype)
        if need_x:
            scale = rstd if gamma is None else rstd * gamma
            if own_stats:
                if gamma is not None:
                    sum_dz, sum_dzx = sum_dz * gamma, sum_dzx * gamma
                stats_only = tuple(d for d in pool.dims if d not in pool.shared_dims)
                g1, g2 = _sum(sum_dz, stats_only), _sum(sum_dzx, stats_only)
                if reduce is not None:
                    g1, g2 = reduce(g1, g2)
                else:
                    count = max(pool.count(n, c, s), 1)
                    g1, g2 = g1 / count, g2 / count
                # Without centring xc may be x itself, which must not be written over.
                # r·g₂ first: r³ alone underflows for deviations of 1e13 and more.
                slope = (rstd * g2) * rstd * -rstd
                dx4 = xc.mul_(slope) if spec.centred else xc * slope
                dx4.addcmul_(dz, scale)
                if spec.centred:
                    dx4.sub_(rstd * g1)
            else:
                dx4 = dz * scale
            dx = _shaped(dx4, x)
        dresidual = _shaped(dz, x) if need_r else None
        return Gradients(dx, dweight, dbias, dresidual)


def _shaped(t: Tensor, x: Tensor) -> Tensor:
    """Return ``t`` with shape, type and, where there are no values to look at, strides of ``x``."""
    return t.to(x.dtype).reshape(x.shape) if x.numel() else torch.empty_like(x)


def _sum(t: Tensor, dims: tuple[int, ...]) -> Tensor:
    return t.sum(dims, keepdim=True) if dims else t


def _affine_(
    z: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    spec: Spec,
    c: int,
) -> None:
    """Turn centred values into γ·r·z + β + residual, in place."""
    params = spec.pool.params(c)
    z.mul_(rstd if weight is None else rstd * weight.reshape(params))
    if bias is not None:
        z.add_(bias.reshape(params))
    if residual is not None:
        z.add_(residual.reshape(z.shape))
