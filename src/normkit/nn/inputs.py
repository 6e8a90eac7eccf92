"""Checks of a layer's input, before anything is changed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normkit.compat import TRAINS_WITH_ZERO_EPS
from normkit.core.pools import concrete
from normkit.errors import OptionError, ShapeError, TypeMismatchError, message

__all__ = [
    "check_batch_axis",
    "check_channels",
    "check_count",
    "check_eps",
    "check_floating",
    "check_more_than_one",
    "check_rank",
    "prepare",
]


def prepare(layer: nn.Module, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return input and residual in one floating type; refuse what no layer can normalize.

    A residual of another floating type, as autocast makes them, widens both to the wider type,
    as adding them would.

    Raises:
        TypeMismatchError: the input is not a floating-point tensor.
        ShapeError: the residual is no such tensor, or of another shape or device.
    """
    check_floating(layer, x)
    if residual is None:
        return x, None
    if (
        not isinstance(residual, Tensor)
        or not residual.is_floating_point()
        or not _same_shape(residual, x)
        or residual.device != x.device
    ):
        raise ShapeError(
            message(
                f"a floating-point residual of {_name(layer)} with the shape and device of its "
                "input",
                f"{_describe(residual)} for {_describe(x)}",
                "project or move the residual first",
            )
        )
    if residual.dtype != x.dtype:
        wide = torch.promote_types(residual.dtype, x.dtype)
        return x.to(wide), residual.to(wide)
    return x, residual


def _same_shape(a: Tensor, b: Tensor) -> bool:
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return [*map(concrete, a.shape)] == [*map(concrete, b.shape)]
    return a.shape == b.shape


def check_floating(layer: nn.Module, x: object) -> None:
    """Refuse an input that is not a floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeMismatchError(
            message(
                f"a floating-point tensor as input of {_name(layer)}",
                f"{x.dtype if isinstance(x, Tensor) else type(x).__name__}",
                "convert the input first, for example with x.float()",
            )
        )


def _describe(t: object) -> str:
    if not isinstance(t, Tensor):
        return f"a {type(t).__name__}"
    return f"{tuple(t.shape)} of {t.dtype} on {t.device}"


def check_rank(layer: nn.Module, x: Tensor, ranks: tuple[int, ...], shape: str, fix: str) -> None:
    """Refuse an input whose number of axes is not one of ``ranks``.

    ``shape`` names the expected shape, ``fix`` what to do.
    """
    if not isinstance(x, Tensor):
        check_floating(layer, x)
    if x.dim() not in ranks:
        expected = " or ".join(f"{r}D" for r in ranks)
        raise ShapeError(
            message(
                f"{expected} input {shape} of {_name(layer)}",
                f"{x.dim()}D input {tuple(x.shape)}",
                fix,
            )
        )


def check_batch_axis(layer: nn.Module, x: Tensor) -> None:
    """Refuse an input without a batch axis and channels."""
    if not isinstance(x, Tensor):
        check_floating(layer, x)
    if x.dim() < 2:
        raise ShapeError(
            message(
                f"at least 2D input (N, C, ...) of {_name(layer)}",
                f"{x.dim()}D input {tuple(x.shape)}",
                "add the batch axis",
            )
        )


def check_channels(
    layer: nn.Module, x: Tensor, weight: Tensor | None, mean: Tensor | None = None, dim: int = 1
) -> None:
    """Refuse an input with another number of channels than γ has, or else the running mean.

    The tensors decide and not ``num_features``, which may be out of date in a lazy, pruned or
    loaded layer. A layer without tensors takes any number, as PyTorch's do.
    """
    tensor = mean if weight is None else weight
    if tensor is not None:
        check_count(layer, x, tensor.shape.numel(), dim)


def check_count(layer: nn.Module, x: Tensor, channels: int, dim: int = 1) -> None:
    """Refuse an input whose axis ``dim`` does not have ``channels`` entries."""
    if concrete(x.shape[dim]) != channels:
        raise ShapeError(
            message(
                f"{channels} channels on axis {dim} of the input of {_name(layer)}",
                f"{x.shape[dim]} in an input of shape {tuple(x.shape)}",
                f"construct the layer with {x.shape[dim]} channels, or move the channels to axis "
                f"{dim} (channels last is a memory format, not another order of axes)",
            )
        )


def check_more_than_one(layer: nn.Module, x: Tensor, count: int, per: str) -> None:
    """Refuse a pool of a single value, which has no variance."""
    if concrete(count) == 1:
        raise ShapeError(
            message(
                f"more than 1 value per {per} when training {_name(layer)}",
                f"input size {list(x.shape)}",
                "use a larger batch, drop_last=True in the loader, or evaluation mode",
            )
        )


def check_eps(layer: nn.Module, eps: float, training: bool) -> None:
    """Refuse an ε that does not keep the division finite."""
    if eps < 0 or (training and eps == 0 and not TRAINS_WITH_ZERO_EPS):
        raise OptionError(
            message(
                # The words of torch.nn's error, which its own tests look for.
                f"a valid eps for {_name(layer)}: eps must be positive, or 0 in evaluation",
                f"eps={eps}",
                "use 1e-5, PyTorch's default",
            )
        )


def _name(layer: nn.Module) -> str:
    return type(layer).__name__
