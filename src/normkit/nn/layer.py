"""What all layers share: the activation they may apply, and the checks of what comes in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normkit.core.activations import Act, ActLike, parse_act
from normkit.errors import OptionError, ShapeError, TypeMismatchError, explain

__all__ = ["Layer", "affine_parameters", "check_channels", "check_rank", "check_tensors", "join"]


class Layer(nn.Module):
    """Mixin: an optional activation, kept as data and shown in the layer's ``repr``.

    It stands before the ``torch.nn`` class among the bases and leaves that class's constructor
    and state alone.
    """

    # Class attributes, so that a layer unpickled from before they existed still has them.
    _act: Act | None = None
    _act_given: ActLike = None

    @property
    def act(self) -> ActLike:
        """The activation as it was given: None, a name, or ``("leaky_relu", slope)``."""
        return self._act_given

    @act.setter
    def act(self, act: ActLike) -> None:
        self._act = parse_act(act)
        self._act_given = act

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.act is None else f"{shown}, act={self.act!r}"


def affine_parameters(
    layer: nn.Module,
    shape: int | tuple[int, ...],
    affine: bool,
    bias: bool,
    device: Any = None,
    dtype: Any = None,
) -> None:
    """Register γ = 1 as ``weight`` and β = 0 as ``bias``, or None for either."""
    for name, wanted, make in (
        ("weight", affine, torch.ones),
        ("bias", affine and bias, torch.zeros),
    ):
        values = nn.Parameter(make(shape, device=device, dtype=dtype)) if wanted else None
        layer.register_parameter(name, values)


def join(parts: list[Tensor], like: Tensor, dim: int = 0) -> Tensor:
    """Concatenate ``parts`` in the memory format of ``like``.

    Left to itself ``torch.cat`` falls back to contiguous where a part has an axis of size one.
    """
    y = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
    if (
        like.dim() == 4
        and not like.is_contiguous()
        and like.is_contiguous(memory_format=torch.channels_last)
    ):
        return y.contiguous(memory_format=torch.channels_last)
    return y


def check_tensors(layer: nn.Module, x: Tensor, residual: Tensor | None) -> None:
    """Refuse what no layer can normalize: integers, complex numbers, a residual that differs."""
    if not x.is_floating_point():
        raise TypeMismatchError(
            explain(
                f"{_name(layer)} normalizes floating-point tensors",
                f"{x.dtype}",
                "convert the input first, for example with x.float()",
            )
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ShapeError(
            explain(
                f"the residual of {_name(layer)} has the shape and type of its input",
                f"a residual {tuple(residual.shape)} of {residual.dtype} for an input "
                f"{tuple(x.shape)} of {x.dtype}",
                "project or cast the residual before it is added",
            )
        )


def check_rank(layer: nn.Module, x: Tensor, ranks: tuple[int, ...], shape: str, other: str) -> None:
    """Refuse an input whose number of axes is not one of ``ranks``.

    ``shape`` names the expected shape, ``other`` what to do instead.
    """
    if x.dim() not in ranks:
        expected = " or ".join(f"{r}D" for r in ranks)
        raise ShapeError(
            explain(
                f"{_name(layer)} expected {expected} input {shape}",
                f"{x.dim()}D input {tuple(x.shape)}",
                other,
            )
        )


def check_channels(layer: nn.Module, x: Tensor, channels: int, dim: int = 1) -> None:
    """Refuse an input with another number of channels than the layer was made for."""
    if x.shape[dim] != channels:
        raise ShapeError(
            explain(
                f"{_name(layer)} was made for {channels} channels on axis {dim}",
                f"{x.shape[dim]} in an input of shape {tuple(x.shape)}",
                f"make the layer with {x.shape[dim]}, or move the channels to axis {dim} "
                "(channels last is a memory format, not another order of axes)",
            )
        )


def check_more_than_one(layer: nn.Module, x: Tensor, count: int, per: str) -> None:
    """Refuse to take a variance of a single value."""
    if count == 1:
        raise ShapeError(
            explain(
                f"Expected more than 1 value per {per} when training: {_name(layer)} cannot take "
                "the variance of one",
                f"input size {list(x.shape)}",
                "use a larger batch, drop_last=True in the loader, or evaluation mode",
            )
        )


def check_eps(layer: nn.Module, eps: float, training: bool) -> None:
    """Refuse an ε that does not keep the division finite."""
    if eps < 0 or (training and eps == 0):
        raise OptionError(
            explain(
                f"{_name(layer)}: eps must be positive (in evaluation it may be 0)",
                f"eps={eps}",
                "use 1e-5, PyTorch's default",
            )
        )


def _name(layer: nn.Module) -> str:
    return type(layer).__name__
