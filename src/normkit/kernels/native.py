"""ATen's own fused normalization kernels, where they are at least as good as elementary ones.

- Statistics within a sample, contiguous: ``native_group_norm`` and ``native_layer_norm``, two
  passes over memory on a CPU and one kernel on a GPU.
- Statistics across the batch, on an accelerator: ``native_batch_norm``. On a CPU the elementary
  form is faster and more accurate far from zero (``docs/log.md``).

Activation and residual follow in place. Backward recomputes z with the same kernels.
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


class Native:
    """See the module's docstring and :class:`normkit.kernels.contract.Backend`."""

    name = "native"

    def refuses(self, x: Tensor, spec: Spec) -> str | None:
        if not spec.centred:
            return "ATen has no fused kernel without centring that every release offers"
        if x.numel() == 0:
            return "the input is empty"
        over = spec.pool.over
        if over in ("position", "ghost"):
            return f"ATen has no kernel for pools over {over}"
        if over == "batch":
            if x.device.type == "cpu":
                return "on a CPU elementary operations are faster across the batch"
            if x.dtype == torch.float64:
                return "elementary operations keep float64 throughout"
            return None
        return None if x.is_contiguous() else "ATen's kernel would copy an input of this layout"

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        stats: tuple[Tensor, Tensor] | None,
        spec: Spec,
    ) -> Forward:
        z, mean, var, rstd = _standardize(x, weight, bias, stats, spec)
        if residual is not None:
            z.add_(residual)
        if spec.act is not None:
            z = spec.act.apply_(z)
        return Forward(z, mean, var, rstd)

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
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
        dz = dy
        if spec.act is not None:
            # The kernel below wants var for given moments; eps 0 makes r⁻² stand for var + eps.
            given = None if own_stats else (mean, rstd.pow(-2))
            z = _standardize(x, weight, bias, given, spec, 0.0 if given else spec.eps)[0]
            if residual is not None:
                z.add_(residual)
            dz = spec.act.backward(dy, z)
        gamma = _affine(weight, c, x)
        mask = [needs[0], needs[1] and weight is not None, needs[2] and bias is not None]
        dx = dweight = dbias = None
        if any(mask):
            if spec.pool.over == "batch":
                mean, rstd = mean.reshape(c), rstd.reshape(c)
                running = (None, None) if own_stats else (mean, rstd.pow(-2))
                dx, dweight, dbias = _ops.native_batch_norm_backward(
                    dz, x, gamma, *running, mean, rstd, own_stats, 0.0, mask
                )
            elif _is_layer(spec, s):
                dx, dweight, dbias = _ops.native_layer_norm_backward(
                    dz.contiguous(), x.reshape(n, c), [c], mean.view(n, 1), rstd.view(n, 1),
                    gamma, gamma, mask,
                )  # fmt: skip
            else:
                groups = spec.pool.groups
                dx, dweight, dbias = _ops.native_group_norm_backward(
                    dz.contiguous(), x, mean.view(n, groups), rstd.view(n, groups), gamma,
                    n, c, s, groups, mask,
                )  # fmt: skip
        return Gradients(
            _like(dx, x if mask[0] else None),
            _like(dweight, weight if mask[1] else None),
            _like(dbias, bias if mask[2] else None),
            _like(dz, x if needs[3] else None),
        )


def _like(gradient: Tensor | None, of: Tensor | None) -> Tensor | None:
    """``gradient`` in the shape and type of what it is the gradient of, if it is wanted."""
    return None if gradient is None or of is None else gradient.reshape(of.shape).to(of.dtype)


def _is_layer(spec: Spec, s: int) -> bool:
    return s == 1 and spec.pool.groups == 1


def _affine(v: Tensor | None, c: int, x: Tensor) -> Tensor | None:
    """γ or β as the kernels want it: C elements of the accumulator's type.

    With parameters of a half type, or none, they would keep the moments in the half type too.
    """
    acc = accumulator(x.dtype)
    if v is not None:
        return v.reshape(c).to(acc)
    return None if acc == x.dtype else torch.ones(c, dtype=acc, device=x.device)


def _standardize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: tuple[Tensor, Tensor] | None,
    spec: Spec,
    eps: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """γ·x̂ + β, mean, variance and reciprocal deviation."""
    n, c, s = as_ncs(x)
    eps = spec.eps if eps is None else eps
    shape = spec.pool.stats(n, c, s)
    gamma = _affine(weight, c, x)
    beta = None if bias is None else bias.reshape(c).to(accumulator(x.dtype))
    if beta is None and gamma is not None and weight is None:
        beta = torch.zeros_like(gamma)
    if spec.pool.over == "batch":
        if stats is not None:
            mean, var = stats[0].reshape(c), stats[1].reshape(c)
            z, _, _ = torch.native_batch_norm(x, gamma, beta, mean, var, False, 0.0, eps)
            return z, stats[0], stats[1], torch.rsqrt(stats[1] + eps)
        z, mean, rstd = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, eps)
    elif _is_layer(spec, s):
        z, mean, rstd = torch.native_layer_norm(x.reshape(n, c), [c], gamma, beta, eps)
    else:
        z, mean, rstd = torch.native_group_norm(x, gamma, beta, n, c, s, spec.pool.groups, eps)
    mean, rstd = mean.reshape(shape), rstd.reshape(shape)
    return z.reshape(x.shape), mean, (rstd.pow(-2) - eps).clamp_min_(0), rstd
