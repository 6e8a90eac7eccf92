"""Layers in plain float64 operations of torch: no code of the package is used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Formulas", "finish", "view"]

_ACTS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "leaky_relu": F.leaky_relu,
    "relu6": F.relu6, "hardswish": F.hardswish,
}  # fmt: skip


def view(values: Tensor, x: Tensor) -> Tensor:
    return values.view([1, -1] + [1] * (x.dim() - 2)).to(x.dtype)


def finish(layer: Any, z: Tensor, residual: Tensor | None) -> Tensor:
    act = getattr(layer, "act", None)
    z = z if residual is None else z + residual
    if act is None:
        return z
    if isinstance(act, nn.Module):
        return act(z)  # type: ignore[no-any-return]
    name, *rest = (act,) if isinstance(act, str) else act
    return _ACTS[name](z, *rest)


class Formulas:
    """Layers whose moments are those of their input, or constant.

    Attributes:
        condition: the largest factor by which a normalization enlarged a rounding error.
    """

    def __init__(self) -> None:
        self.condition = 1.0

    def _affine(self, layer: Any) -> list[Tensor | None]:
        both = [getattr(layer, "weight", None), getattr(layer, "bias", None)]
        return [t[layer.domain] if t is not None and t.dim() == 2 else t for t in both]

    def _note(self, mean: Tensor, var: Tensor, eps: float) -> None:
        """Remember how far values are from zero in the deviations that they are divided by."""
        if mean.numel():
            # The rounding errors of values near one stay where they cancel.
            ratio = (mean.square() + var + eps + 1) / (var + eps)
            largest = float(ratio.detach().double().nan_to_num(math.inf).max().sqrt())
            self.condition = max(self.condition, largest)

    def _standardize(self, x: Tensor, axes: list[int], eps: float) -> Tensor:
        mean = x.mean(axes, keepdim=True)
        var = (x - mean).square().mean(axes, keepdim=True)
        self._note(mean, var, eps)
        return (x - mean) / (var + eps).sqrt()

    def _normalize(
        self, layer: Any, x: Tensor, mean: Tensor, var: Tensor, residual: Tensor | None
    ) -> Tensor:
        self._note(mean, var, layer.eps)
        z = (x - view(mean, x)) / (view(var, x) + layer.eps).sqrt()
        weight, bias = self._affine(layer)
        z = z if weight is None else z * view(weight, x)
        z = z if bias is None else z + view(bias, x)
        return finish(layer, z, residual)

    def _group(self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        parts = input.reshape(len(input), layer.num_groups, -1)
        z = self._standardize(parts, [2], layer.eps).reshape(input.shape)
        z = z if layer.weight is None else z * view(layer.weight, z)
        z = z if layer.bias is None else z + view(layer.bias, z)
        return finish(layer, z, residual)

    def _layer(self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        axes = list(range(input.dim() - len(layer.normalized_shape), input.dim()))
        z = self._standardize(input, axes, layer.eps)
        z = z if layer.weight is None else z * layer.weight
        z = z if layer.bias is None else z + layer.bias
        return finish(layer, z, residual)

    def _rms(self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        axes = list(range(input.dim() - len(layer.normalized_shape), input.dim()))
        eps = torch.finfo(input.dtype).eps if layer.eps is None else layer.eps
        z = input / (input.square().mean(axes, keepdim=True) + eps).sqrt()
        z = z if layer.weight is None else z * layer.weight
        return finish(layer, z, residual)

    def _zero_centered(
        self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        axes = list(range(input.dim() - len(layer.normalized_shape), input.dim()))
        z = input / (input.square().mean(axes, keepdim=True) + layer.eps).sqrt()
        return finish(layer, z if layer.weight is None else z * (1 + layer.weight), residual)

    def _response(
        self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        square = input.square().flatten(2) if input.dim() > 2 else input.square()[..., None]
        eps = layer.eps if layer.eps_l is None else layer.eps + view(layer.eps_l.abs(), input)
        mean = square.mean(2).reshape(*input.shape[:2], *[1] * (input.dim() - 2))
        z = input / (mean + eps).sqrt()
        z = z if layer.weight is None else z * view(layer.weight, z)
        z = z if layer.bias is None else z + view(layer.bias, z)
        if layer.tau is not None:
            z = z if residual is None else z + residual
            z, residual = torch.maximum(z, view(layer.tau, z)), None
        return finish(layer, z, residual)

    def _channels(
        self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        z = self._standardize(input, [1], layer.eps)
        z = z if layer.weight is None else z * view(layer.weight, z)
        z = z if layer.bias is None else z + view(layer.bias, z)
        return finish(layer, z, residual)

    def _constant(
        self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        return self._normalize(layer, input, layer.running_mean, layer.running_var, residual)

    def _half(self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        k = math.ceil(input.shape[1] / 2)
        z = self._standardize(input[:, :k], [2, 3], layer.eps)
        z = z if layer.weight is None else z * view(layer.weight, z)
        z = z if layer.bias is None else z + view(layer.bias, z)
        return finish(layer, torch.cat([z, input[:, k:]], 1), residual)

    def _scale(self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        z = input * view(layer.weight, input)
        z = z if layer.bias is None else z + view(layer.bias, z)
        return finish(layer, z, residual)
