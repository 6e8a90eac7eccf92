"""PyTorch's own fused normalization kernels, for the pools that have one.

They bring their own backward, double backward and little overhead, so they are called as they are
and activation and residual follow in place where the backward allows it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import as_ncs
from normkit.kernels.call import BatchStats, Call, Normalized, dense, layout
from normkit.kernels.outputs import listening, offer
from normkit.kernels.wide import beyond_float32, has_wider_stats, in_float64, may_exceed

__all__ = ["TorchNative"]


class TorchNative:
    """Take batches, groups and rows on any device, if they are not empty and are centred."""

    name = "PyTorch's kernels"

    def refuses(self, call: Call) -> str | None:
        x, pool = call.x, call.spec.pool
        if call.group is not None:
            return "the moments span several processes"
        if not call.spec.centred:
            return "PyTorch has no fused kernel without centring on every device"
        if pool.over in ("position", "ghost"):
            return f"PyTorch has no kernel for pools over {pool.over}"
        if x.numel() == 0:
            return "the input is empty"
        if pool.over == "batch":
            update = call.stats.update if isinstance(call.stats, BatchStats) else None
            if update is not None and update[0].dtype != accumulator(x.dtype):
                return f"running statistics are not {accumulator(x.dtype)}"
            if x.is_cpu and x.dtype == torch.float16 and not x.is_contiguous():
                return "PyTorch's backward in channels-last overflows float16 midway"
            return None
        if call.wants_moments:
            return "PyTorch's kernels for groups return no moments"
        if x.dim() > 2 and pool.groups == x.shape[1]:
            # native_group_norm's backward multiplies x itself, not x − μ.
            return "PyTorch's kernel with a group for each channel loses digits far from zero"
        if x.device.type != "cpu" and layout(x) is not torch.contiguous_format:
            return "off the CPU PyTorch's kernel turns channels-last into contiguous"
        return None

    def run(self, call: Call) -> Normalized:
        if has_wider_stats(call):
            return in_float64(self.run, call)
        x = dense(call.x)
        spec, stats = call.spec, call.stats
        n, c, s = as_ncs(x)
        acc, cudnn = accumulator(x.dtype), torch.backends.cudnn.enabled
        gamma, beta = _affine(call.weight, c, x, acc, 1.0), _affine(call.bias, c, x, acc, 0.0)
        if gamma is None and beta is not None:
            # Without γ the backward of PyTorch's group norm raises an error that names no cause,
            # and the double backward of its batch norm omits β.
            gamma = torch.ones_like(beta)
        mean = var = rstd = None
        looks, fixed = may_exceed(call), call.fixed_moments()
        if spec.pool.over == "group":
            z, rstd = _group_norm(x, spec, gamma, beta, looks)
        elif fixed is not None:
            mean, var = (t.reshape(c) for t in fixed)
            z = torch.batch_norm(x, gamma, beta, mean, var, False, 0.0, spec.eps, cudnn)
        elif (
            isinstance(stats, BatchStats)
            and stats.update is not None
            and not (looks or (x.is_cpu and x.dtype == torch.float64))
        ):
            # The kernel updates the running buffers itself, be they infinite, and returns no
            # moments. Those of float16 always fit float32.
            running_mean, running_var, share = stats.update
            z = torch.batch_norm(x, gamma, beta, running_mean, running_var, True, share, spec.eps,
                                 cudnn)  # fmt: skip
        else:
            # With a momentum of 1 the kernel hands over its moments as they are. To recover the
            # variance from 1/√(σ² + ε) would lose it where it is small against ε.
            both = torch.zeros(2, c, dtype=acc, device=x.device)
            z = torch.batch_norm(x, gamma, beta, both[0], both[1], True, 1.0, spec.eps, cudnn)
            mean, var = both[0], both[1] * ((n * s - 1) / (n * s))
            rstd = torch.rsqrt(var + spec.eps) if looks else None
        if rstd is not None and beyond_float32(rstd):
            return in_float64(self.run, call)
        if listening.listener is not None:
            self._offer(z, x, gamma, beta, spec, None if fixed is None else (mean, var))
        if call.residual is not None:
            z = z.add_(call.residual)
        y = z if spec.act is None else spec.act.onto(z)
        return Normalized(y, mean, var, spec.pool.count(n, c, s))

    def _offer(
        self,
        z: Tensor,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        spec: Spec,
        fixed: tuple[Tensor | None, Tensor | None] | None,
    ) -> None:
        """Offer the kernel's output, before what follows in place; computed by the same kernel."""
        cudnn = torch.backends.cudnn.enabled
        mean, var = fixed or (None, None)

        def repeat(x: Tensor, gamma: Tensor | None, beta: Tensor | None, _: Any) -> Tensor:
            if spec.pool.over == "group":
                return _group_norm(x, spec, gamma, beta, False)[0]
            return torch.batch_norm(x, gamma, beta, mean, var, fixed is None, 0.0, spec.eps, cudnn)

        offer(z, x, gamma, beta, None, repeat)


def _group_norm(
    x: Tensor, spec: Spec, gamma: Tensor | None, beta: Tensor | None, looks: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the output, and 1/√(σ² + ε) of each group where somebody ``looks``."""
    (n, c, s), groups, cudnn = as_ncs(x), spec.pool.groups, torch.backends.cudnn.enabled
    if s == 1 and groups == 1:
        rows = x if x.dim() == 2 else x.reshape(n, c)
        if looks:
            z, _, rstd = torch.native_layer_norm(rows, [c], gamma, beta, spec.eps)
        else:
            z, rstd = torch.layer_norm(rows, [c], gamma, beta, spec.eps, cudnn), None
        return z if x.dim() == 2 else z.reshape(x.shape), rstd
    if looks:
        z, _, rstd = torch.native_group_norm(x, gamma, beta, n, c, s, groups, spec.eps)
        return z, rstd
    return torch.group_norm(x, groups, gamma, beta, spec.eps, cudnn), None


def _affine(v: Tensor | None, c: int, x: Tensor, acc: torch.dtype, neutral: float) -> Tensor | None:
    """Return γ or β as the kernels need it: C elements of the accumulator's type.

    With parameters of a half type, or none, the kernels would keep the moments in that type too.
    """
    if v is not None:
        v = v if v.dim() == 1 else v.reshape(c)
        return v if v.dtype == acc else v.to(acc)
    return None if acc == x.dtype else torch.full((c,), neutral, dtype=acc, device=x.device)
