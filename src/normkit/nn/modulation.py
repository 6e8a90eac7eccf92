"""Scale and shift that are inputs of a layer, one for each sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit.core.activations import Act
from normkit.core.moments import accumulator
from normkit.core.pools import concrete
from normkit.errors import ShapeError, message
from normkit.nn.inputs import check_floating
from normkit.nn.layer import match_layout

__all__ = ["fitted", "gamma", "modulate", "wide_type"]


def fitted(
    layer: Any, name: str, value: Tensor | None, x: Tensor, features: tuple[int, ...], axis: int
) -> Tensor | None:
    """Return a scale or shift with as many axes as ``x``, to be broadcast over it.

    Args:
        value: of shape ``features``, or (N, \\*features), or with the axes of ``x``, any of which
            may be 1.
        features: sizes of the axes of ``x`` from ``axis`` on that the scale differs along.

    Raises:
        TypeMismatchError: not a floating-point tensor.
        ShapeError: another shape.
    """
    if value is None:
        return None
    check_floating(layer, value)
    shape = [concrete(size) for size in value.shape]
    sizes = [concrete(size) for size in x.shape]
    before, after = [1] * (axis - 1), [1] * (x.dim() - axis - len(features))
    if shape == [*features]:
        return value.reshape([*[1] * axis, *features, *after])
    if axis and shape in ([sizes[0], *features], [1, *features]):
        return value.reshape([value.shape[0], *before, *features, *after])
    same = len(shape) == len(sizes) and shape[axis : axis + len(features)] == [*features]
    if same and all(a in (1, b) for a, b in zip(shape, sizes, strict=True)):
        return value
    raise ShapeError(
        message(
            f"{name} of {type(layer).__name__} of shape {[sizes[0], *features]}, one for each "
            f"sample, or one that broadcasts over its input",
            f"{name} of shape {shape} for an input of shape {sizes}",
            f"pass {name} as (N, C)",
        )
    )


def wide_type(x: Tensor, *others: Tensor | None) -> torch.dtype:
    """Return the type to modulate in: that of sums over ``x``, or a wider one of ``others``."""
    wide = accumulator(x.dtype)
    for t in others:
        wide = wide if t is None else torch.promote_types(wide, t.dtype)
    return wide


def gamma(scale: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return 1 + ``scale``, which a half type would round while it is near 1."""
    return None if scale is None else scale.to(dtype) + 1


def modulate(
    z: Tensor,
    residual: Tensor | None,
    act: Act | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    """Compute act(z·(1 + scale) + shift + residual), rounded to the type of ``z`` once."""
    wide = wide_type(z, scale, shift)
    y, factor = z.to(wide), gamma(scale, wide)
    if factor is not None and shift is not None:
        y = torch.addcmul(shift.to(wide), y, factor)
    elif factor is not None:
        y = y * factor
    elif shift is not None:
        y = y + shift.to(wide)
    if residual is not None:
        y = y + residual.to(wide)
    return match_layout((y if act is None else act(y)).to(z.dtype), z)
