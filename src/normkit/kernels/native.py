"""PyTorch's own fused normalization kernels, for the pools that have one.

They bring their own backward, double backward and little overhead, so they are called as they are
and activation and residual follow in place where the backward allows it. Whatever PyTorch has no
kernel for goes to a :class:`normkit.kernels.contract.Backend`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import as_ncs

__all__ = ["Running", "normalize", "refuses"]

# Buffers for mean and variance to move, and the share to move them by.
Running = tuple[Tensor, Tensor, float]


def refuses(x: Tensor, spec: Spec) -> str | None:
    """Why PyTorch's kernels cannot take ``x``, to finish 'not used because'; or None if they can.

    ``x`` is dense, contiguous or channels-last.
    """
    if not spec.centred:
        return "PyTorch has no fused kernel without centring on every device"
    if spec.pool.over in ("position", "ghost"):
        return f"PyTorch has no kernel for pools over {spec.pool.over}"
    if x.numel() == 0:
        return "the input is empty"
    if spec.pool.over == "group":
        if x.dim() > 2 and spec.pool.groups == x.shape[1]:
            # native_group_norm's backward multiplies x itself, not x − μ.
            return "PyTorch's kernel with a group for each channel loses digits far from zero"
        if x.device.type != "cpu" and not x.is_contiguous():
            return "off the CPU PyTorch's kernel turns channels-last into contiguous"
    return None


def normalize(
    x: Tensor,
    spec: Spec,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    stats: tuple[Tensor, Tensor] | None,
    running: Running | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Output, mean and biased variance; the moments only for statistics across the batch.

    With ``running`` given the kernel moves the buffers itself, and hands over no moments.
    """
    n, c, s = as_ncs(x)
    cudnn = torch.backends.cudnn.enabled
    gamma, beta = _affine(weight, c, x, 1.0), _affine(bias, c, x, 0.0)
    if gamma is None and beta is not None:
        # Without γ the backward of PyTorch's group norm raises an error that names no cause, and
        # the double backward of its batch norm leaves out β.
        gamma = torch.ones_like(beta)
    mean = var = None
    if spec.pool.over == "group":
        if s == 1 and spec.pool.groups == 1:
            rows = x if x.dim() == 2 else x.reshape(n, c)
            z = torch.layer_norm(rows, [c], gamma, beta, spec.eps, cudnn)
            z = z if x.dim() == 2 else z.reshape(x.shape)
        else:
            z = torch.group_norm(x, spec.pool.groups, gamma, beta, spec.eps, cudnn)
    elif stats is not None:
        mean, var = stats[0].reshape(c), stats[1].reshape(c)
        z = torch.batch_norm(x, gamma, beta, mean, var, False, 0.0, spec.eps, cudnn)
    elif running is not None:
        z = torch.batch_norm(x, gamma, beta, running[0], running[1], True, running[2], spec.eps,
                             cudnn)  # fmt: skip
    else:
        # With a momentum of 1 the kernel hands over its moments as they are. To find the
        # variance from 1/√(σ² + ε) would lose it where it is small against ε.
        both = torch.zeros(2, c, dtype=accumulator(x.dtype), device=x.device)
        z = torch.batch_norm(x, gamma, beta, both[0], both[1], True, 1.0, spec.eps, cudnn)
        mean, var = both[0], both[1] * ((n * s - 1) / (n * s))
    if residual is not None:
        z = z.add_(residual)
    return (z if spec.act is None else spec.act.onto(z)), mean, var


def _affine(v: Tensor | None, c: int, x: Tensor, neutral: float) -> Tensor | None:
    """γ or β as the kernels want it: C elements of the accumulator's type.

    With parameters of a half type, or none, they would keep the moments in the half type too.
    """
    acc = accumulator(x.dtype)
    if v is not None:
        v = v if v.dim() == 1 else v.reshape(c)
        return v if v.dtype == acc else v.to(acc)
    return None if acc == x.dtype else torch.full((c,), neutral, dtype=acc, device=x.device)
