"""Normalize the input of a layer by given moments, so that the layer itself has nothing to do."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normkit.errors import StatisticsError, message
from normkit.nn.stats_spec import StatsSpec

__all__ = ["standardize"]


def standardize(
    layer: nn.Module, spec: StatsSpec, x: Tensor, moments: tuple[Tensor, Tensor], eps: float
) -> Tensor:
    r"""Return ``x`` as a layer that remembers mean 0 and variance 1 is to take it.

    .. math:: \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \sqrt{1 + \epsilon}

    since the layer divides by √(1 + ε).

    Args:
        moments: mean and variance, (C,) or (N, C) each. A mean in float64 is subtracted in two
            parts: at mean 1e4 a float32 is off by 5e-4.
        eps: the layer's ε.

    Raises:
        StatisticsError: the values that the spec names are no view of the input.
    """
    mean, var = moments
    values, wide = spec.values(layer, x), torch.promote_types(torch.float32, x.dtype)
    # Not below what float32 holds: 1/√ of it may be infinite otherwise.
    scale = (var + eps).clamp_min(torch.finfo(torch.float32).tiny).rsqrt() * math.sqrt(1 + eps)
    shape = (*mean.shape[:-1], -1) if mean.dim() > 1 else (1, -1)
    shape = (*shape, *[1] * (values.dim() - 2))
    high = mean.detach().to(wide)
    low = (mean - high).to(wide).reshape(shape)
    high, scale = high.reshape(shape), scale.to(wide).reshape(shape)
    if values is x:
        # (x − high − low) · scale in two passes over x.
        return torch.addcmul(-low * scale, x - high, scale).to(x.dtype)
    y = x.to(wide, copy=True)
    view = spec.values(layer, y)
    if view.data_ptr() != y.data_ptr() and view.numel():
        raise StatisticsError(
            message(
                f"values of a {type(layer).__name__} that are a view of its input, such as "
                "x.movedim(-1, 1), to be normalized in place",
                "a copy",
                "freeze the layer first, normkit.freeze(layer), and adapt the others",
            )
        )
    view.sub_(high).sub_(low).mul_(scale)
    return y.to(x.dtype)
