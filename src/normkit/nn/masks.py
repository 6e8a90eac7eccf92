"""Masks of positions that count, as of padded sequences: their checks, and what follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit.core.formula import Spec
from normkit.core.masked import masked_moments
from normkit.core.pools import concrete
from normkit.errors import ShapeError, TypeMismatchError, message
from normkit.kernels.modes import transformed
from normkit.kernels.wide import beyond_float32
from normkit.nn.layer import match_layout

__all__ = ["checked_mask", "normalize", "readable", "without"]


def checked_mask(layer: Any, mask: Tensor, x: Tensor) -> Tensor:
    """Return ``mask`` as (N, 1, \\*), for an input ``x`` (N, C, \\*).

    Raises:
        TypeMismatchError: not a boolean tensor.
        ShapeError: another shape or device.
    """
    name = type(layer).__name__
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = f"of {mask.dtype}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise TypeMismatchError(
            message(
                f"mask of {name} as a boolean tensor, True at positions that count",
                f"mask {kind}",
                "pass mask.bool() where ones mark positions that count, or ~mask for a "
                "key_padding_mask of torch.nn.MultiheadAttention, which is True at padding",
            )
        )
    sizes, shape = [[concrete(size) for size in t.shape] for t in (x, mask)]
    full = [sizes[0], 1, *sizes[2:]]
    if shape not in (full, [sizes[0], *sizes[2:]]) or mask.device != x.device:
        raise ShapeError(
            message(
                f"mask of {name} of shape {[sizes[0], *sizes[2:]]} or {full} on {x.device}",
                f"mask of shape {shape} on {mask.device} for an input of shape {sizes}",
                "pass one truth value for each position, for all channels together",
            )
        )
    return mask if shape == full else mask.unsqueeze(1)


def without(t: Tensor, mask: Tensor) -> Tensor:
    """Return ``t`` with 0 at positions that do not count, so that nothing of them goes on."""
    return match_layout(torch.where(mask, t, 0.0), t)


def readable(x: Tensor, mask: Tensor) -> bool:
    """Return whether the values of ``mask`` can be looked at without waiting for a device."""
    return x.is_cpu and not x.is_meta and not transformed(x, mask)


def normalize(
    x: Tensor,
    mask: Tensor,
    spec: Spec,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalize ``x`` by its positions that count, and return 0 at the others.

    ``x`` and ``residual`` are 0 at those. Returns the output, and count, mean and biased variance
    of each pool, the last two detached.
    """
    m = masked_moments(x, mask, spec.pool)
    if (
        readable(x, mask)
        and m.var.dtype == torch.float32
        and beyond_float32(torch.rsqrt(m.var + spec.eps))
    ):  # squares beyond float32, see normkit.kernels.wide
        rest = None if residual is None else residual.double()
        y, count, mean, var = normalize(x.double(), mask, spec, weight, bias, rest)
        return y.to(x.dtype), count, mean, var
    c = concrete(x.shape[1])
    params = spec.pool.params(c)
    factor = torch.rsqrt(m.var + spec.eps)
    if weight is not None:
        factor = factor * weight.reshape(params).to(factor.dtype)
    offset = -m.rest * factor
    if bias is not None:
        offset = offset + bias.reshape(params).to(factor.dtype)
    # From the centred values, as the mean itself is rounded.
    y = torch.addcmul(offset, m.centred, factor)
    if residual is not None:
        y = y + residual.reshape(m.centred.shape).to(y.dtype)
    if spec.act is not None:
        y = spec.act(y)
    y = without(y.reshape(x.shape).to(x.dtype), mask)
    return y, m.values, (m.mean + m.rest).detach(), m.var.detach()
