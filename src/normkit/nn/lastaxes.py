"""Normalization over the last axes of an input, by layers of samples without channels."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.pools import Pool, concrete
from normkit.errors import OptionError, ShapeError, message
from normkit.kernels import functions, fused
from normkit.kernels.call import BatchStats, Call
from normkit.kernels.from_output import rows_from_output
from normkit.kernels.modes import autocast_wide, recorded, transformed
from normkit.nn.arguments import ATTRIBUTES, Check, flag
from normkit.nn.layer import Layer, is_channels_last, match_layout

__all__ = ["CENTRED", "UNCENTRED", "LastAxes", "check_weight", "over_last"]

# Signatures for the fused call.
CENTRED = fused.signature("group", range(1, 33), rows=True)
UNCENTRED = fused.signature("group", range(1, 33), centred=False, rows=True)


class LastAxes(Layer):
    """Mixin of layers over the last axes, with what their nodes may keep."""

    _checked: ClassVar[dict[str, Check]] = {**ATTRIBUTES, "memory_efficient": flag}
    # A class attribute, so that a layer unpickled from before it existed still has it.
    memory_efficient: bool = False

    def _keep_output(self, memory_efficient: Any) -> None:
        """Store the option, which needs an output without an activation."""
        if flag(type(self).__name__, "memory_efficient", memory_efficient):
            self.memory_efficient = True
        if self.memory_efficient and self.act is not None:
            name = type(self).__name__
            raise OptionError(
                message(
                    f"memory_efficient=True of {name} without an activation, whose output does not "
                    "tell its input",
                    f"act={self.act!r}",
                    f"omit act, or keep it and call normkit.save_memory(model), which computes the "
                    f"output of {name} again",
                )
            )

    def _keeps_output(self) -> bool:
        """Return whether a node of this forward pass would keep the output."""
        return self.memory_efficient and torch.is_grad_enabled()

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return f"{shown}, memory_efficient=True" if self.memory_efficient else shown


def over_last(
    layer: Any,
    x: Tensor,
    residual: Tensor | None,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    centred: bool,
    act: Act | None,
) -> Tensor:
    """Normalize over the last axes: samples are all axes before, channels all of these."""
    shape = tuple(layer.normalized_shape)
    axes = len(shape)
    check_weight(layer)
    last = tuple(map(concrete, x.shape[max(x.dim() - axes, 0) :]))
    if axes == 0 or last != shape:
        raise ShapeError(
            message(
                f"input with shape [*, {', '.join(map(str, shape))}] of {type(layer).__name__} "
                f"with normalized_shape={list(shape)}",
                f"input of size {list(x.shape)}",
                "construct the layer for the last axes of the input, or move them there",
            )
        )
    # PyTorch's function without centring takes γ of another type by its slow path and a warning.
    usual = functions.fits(x, weight, bias, mixed=centred)
    if usual and recorded(x, residual, weight, bias):
        z = functions.over_last(x, shape, weight, bias, eps, centred)
        return functions.finish(z, residual, act)
    wide, rest = autocast_wide(x, residual)
    if torch.is_grad_enabled() and not transformed(x, residual):
        wide, rest = _contiguous(wide), None if rest is None else _contiguous(rest)
    view = (math.prod(x.shape[: x.dim() - axes]), math.prod(shape))
    spec = Spec(Pool("group", 1), eps, act, centred)
    rows = None if rest is None else rest.reshape(view)
    flat = wide if (x.dim(), axes) == (2, 1) else wide.reshape(view)
    y = None
    if rows is None and getattr(layer, "memory_efficient", False):
        y = rows_from_output(flat, spec, weight, bias)
    if y is None:
        y = layer._normalize(Call(flat, spec, weight, bias, rows, BatchStats())).y
    return y if flat is wide else match_layout(y.reshape(x.shape), x)


def _contiguous(t: Tensor) -> Tensor:
    copied: Tensor = _Contiguous.apply(t) if is_channels_last(t) else t
    return copied


class _Contiguous(torch.autograd.Function):
    """Copy to contiguous memory. The gradient returns in channels-last, in which the input was."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.contiguous()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        # By an order of axes and not a memory format, which batched gradients do not know.
        axes = range(dy.dim())
        return dy.movedim(1, -1).contiguous().permute(0, axes[-1], *axes[1:-1])


def check_weight(layer: Any) -> None:
    """Refuse γ of another shape than ``normalized_shape``, as pruning or loading may leave it."""
    weight = layer.weight
    shape = None if weight is None else tuple(map(concrete, weight.shape))
    if shape is not None and shape != tuple(layer.normalized_shape):
        raise ShapeError(
            message(
                f"weight of {type(layer).__name__} with the shape normalized_shape="
                f"{list(layer.normalized_shape)}",
                f"weight of shape {shape}",
                f"set layer.normalized_shape = {shape}, if the layer was pruned",
            )
        )
