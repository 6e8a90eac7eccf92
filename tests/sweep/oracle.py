"""Every layer once more, in plain float64 operations of torch: no code of the package is used."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

import normkit as nk
from tests.sweep import pieces

__all__ = ["Oracle", "doubled", "keeps_statistics", "moments_of", "overrides_forward", "unwrapped"]

_ACTS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "leaky_relu": F.leaky_relu,
    "relu6": F.relu6, "hardswish": F.hardswish,
}  # fmt: skip


def doubled(x: Tensor) -> Tensor:
    """Return an input in float64; tokens as they are."""
    return x.double() if x.is_floating_point() else x


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside parallel, averaging and compiling wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, pieces.AveragedModel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def overrides_forward(layer: nn.Module) -> bool:
    """Return True for a class of a third party that computes something of its own."""
    by = next(cls for cls in type(layer).__mro__ if "forward" in vars(cls))
    return not by.__module__.startswith(("torch.", "normkit."))


def keeps_statistics(layer: nn.Module) -> bool:
    """Return True for a layer with a running mean and variance that evaluation uses."""
    if isinstance(layer, pieces.Registered):
        return True
    return getattr(layer, "running_mean", None) is not None


def _view(values: Tensor, x: Tensor) -> Tensor:
    return values.view([1, -1] + [1] * (x.dim() - 2)).to(x.dtype)


def _finish(layer: Any, z: Tensor, residual: Tensor | None) -> Tensor:
    act = getattr(layer, "act", None)
    z = z if residual is None else z + residual
    if act is None:
        return z
    if isinstance(act, nn.Module):
        return act(z)  # type: ignore[no-any-return]
    name, *rest = (act,) if isinstance(act, str) else act
    return _ACTS[name](z, *rest)


def moments_of(calls: list[Tensor], per_sample: bool) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance by channel of everything a layer was given."""
    if per_sample:
        flat = torch.cat([x.double().flatten(2) for x in calls if x.numel()])
        return flat.mean(2).mean(0), flat.var(2).mean(0)
    rows = torch.cat([x.double().movedim(1, -1).flatten(0, -2) for x in calls])
    return rows.mean(0), rows.var(0)


class Oracle:
    """A model whose normalization layers compute by the formulas below.

    Attributes:
        mode: "batch": measured layers normalize by the moments of their input; "eval": by their
            buffers; "train": as training does, buffers included.
        measured: names of the layers that are measured; the others run as in evaluation.
        fixed: moments that measured layers normalize with, by name.
        seen: by name, batch by batch, the inputs of each call.
        condition: the largest factor by which a normalization enlarged a rounding error.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = torch.float64) -> None:
        self.model = unwrapped(model)
        if dtype is not None:
            self.model.to(dtype)
        self.mode = "eval"
        self.condition = 1.0
        self.by_parts = False  # ghost batch normalization, where measured
        # Of running statistics, in training; batch_statistics also leaves renormalization's
        # correction towards them out.
        self.updates = True
        self.measured: set[str] = set()
        self.fixed: dict[str, tuple[Tensor, Tensor]] = {}
        self.seen: dict[str, list[list[Tensor]]] = {}
        for name, layer in self.model.named_modules():
            function = self._function(layer)
            if function is not None:
                layer.forward = functools.partial(function, name, layer)  # type: ignore[method-assign]

    def _function(self, layer: nn.Module) -> Callable[..., Tensor] | None:
        known: list[tuple[Any, Callable[..., Tensor]]] = [
            (pieces.Registered, self._batch), (_BatchNorm, self._batch),
            (_InstanceNorm, self._instance), (nn.GroupNorm, self._group),
            (nk.LayerNorm2d, self._channels), (nn.LayerNorm, self._layer), (nn.RMSNorm, self._rms),
            (nk.FrozenBatchNorm2d, self._constant), (nk.HalfInstanceNorm2d, self._half),
            (nk.Scale, self._scale),
        ]  # fmt: skip
        if overrides_forward(layer) and not isinstance(layer, pieces.Registered):
            return None
        return next((f for cls, f in known if isinstance(layer, cls)), None)

    def run(
        self,
        inputs: list[Tensor],
        call: Callable[[nn.Module, Any], Any],
        modes: dict[str, bool] | None = None,
        gradients: bool = False,
    ) -> list[Any]:
        """Run every batch that is not empty.

        ``modes``: names of the modules that are in training mode; by default none is.
        """
        self.seen = {}
        for name, module in self.model.named_modules():
            module.training = bool(modes and modes.get(name))
        outputs = []
        with torch.set_grad_enabled(gradients):
            for x in inputs:
                if len(x):
                    self._batch_seen: dict[str, list[Tensor]] = {}
                    outputs.append(call(self.model, x))
                    for key, calls in self._batch_seen.items():
                        self.seen.setdefault(key, []).append(calls)
        return outputs

    def _stats(self, layer: Any) -> tuple[Tensor, Tensor]:
        if isinstance(layer, pieces.Registered):
            return layer.mu, layer.v
        mean, var = layer.running_mean, layer.running_var
        return (mean, var) if mean.dim() == 1 else (mean[layer.domain], var[layer.domain])

    def _key(self, name: str, layer: Any) -> str:
        if isinstance(getattr(layer, "running_mean", None), Tensor) and hasattr(layer, "domains"):
            return f"{name}[{layer.domain}]"
        return name

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
        z = (x - _view(mean, x)) / (_view(var, x) + layer.eps).sqrt()
        weight, bias = self._affine(layer)
        z = z if weight is None else z * _view(weight, x)
        z = z if bias is None else z + _view(bias, x)
        return _finish(layer, z, residual)

    def _batch(
        self, name: str, layer: Any, input: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        x, key = input, self._key(name, layer)
        if layer.training and isinstance(layer, pieces.Registered):
            return type(layer).forward(layer, x)
        if layer.training or not keeps_statistics(layer):
            return self._train_batch(layer, x, residual)
        rows = x.movedim(1, -1).flatten(0, -2)
        mean, var = self._stats(layer)
        if key in self.measured:
            self._batch_seen.setdefault(key, []).append(x.detach())
            if key in self.fixed:
                mean, var = self.fixed[key]
            elif self.mode == "batch" and self.by_parts and hasattr(layer, "ghost_size"):
                return self._train_batch(layer, x, residual)
            elif self.mode == "batch":
                mean, var = rows.mean(0), rows.var(0, unbiased=False)
        return self._normalize(layer, x, mean, var, residual)

    def _train_batch(self, layer: Any, x: Tensor, residual: Tensor | None) -> Tensor:
        """Normalize as training does: by the batch, by parts of it, or corrected."""
        rows = x.movedim(1, -1).flatten(0, -2)
        tracks = keeps_statistics(layer) and layer.track_running_stats
        n, size = len(x), getattr(layer, "ghost_size", len(x))
        count = math.ceil(n / size)
        sizes = [n // count + (i < n % count) for i in range(count)]
        rest = [None] * count if residual is None else residual.split(sizes)
        parts = []
        for part, r in zip(x.split(sizes), rest, strict=True):
            axes = [0, *range(2, x.dim())]
            mean = part.mean(axes)
            var = (part - _view(mean, part)).square().mean(axes)
            if tracks and self.updates and hasattr(layer, "r_max"):
                parts.append(self._renormalize(layer, part, mean, var, r))
            else:
                parts.append(self._normalize(layer, part, mean, var, r))
        if tracks and layer.training and self.updates:
            self._update(layer, rows.detach().mean(0), rows.detach().var(0))
        return torch.cat(parts)

    def _renormalize(
        self, layer: Any, x: Tensor, mean: Tensor, var: Tensor, residual: Tensor | None
    ) -> Tensor:
        running_mean, running_var = self._stats(layer)
        t = 0 if layer.num_batches_tracked is None else int(layer.num_batches_tracked)
        self._note(mean, var, layer.eps)
        r_max, d_max = (_limit(limit, t) for limit in (layer.r_max, layer.d_max))
        sigma, batch = (running_var + layer.eps).sqrt(), (var.detach() + layer.eps).sqrt()
        r = (batch / sigma).clamp(1 / r_max, r_max)
        d = ((mean.detach() - running_mean) / sigma).clamp(-d_max, d_max)
        z = (x - _view(mean, x)) / _view((var + layer.eps).sqrt(), x) * _view(r, x) + _view(d, x)
        if t == 0 and (layer.momentum is None or layer.average != "exponential"):
            # These averages leave out what the buffers start with: nothing is remembered yet.
            z = (x - _view(mean, x)) / _view((var + layer.eps).sqrt(), x)
        weight, bias = self._affine(layer)
        z = z if weight is None else z * _view(weight, x)
        z = z if bias is None else z + _view(bias, x)
        return _finish(layer, z, residual)

    @torch.no_grad()
    def _update(self, layer: Any, mean: Tensor, var: Tensor) -> None:
        tracked = layer.num_batches_tracked
        if tracked is not None and tracked.dim():
            tracked = tracked[layer.domain]
        if tracked is not None:
            tracked += 1
        m, average = layer.momentum, getattr(layer, "average", "exponential")
        if m == 0:
            share = 0.0
        elif m is None or average == "cumulative":
            share = 1 / float(tracked)
        elif average == "debiased" and m < 1:
            share = m / (1 - (1 - m) ** float(tracked))
        else:
            share = m
        for running, value in zip(self._stats(layer), (mean, var), strict=True):
            running.copy_((1 - share) * running + share * value)

    def _instance(
        self, name: str, layer: Any, input: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        x = input
        if layer.track_running_stats and layer.training and self.updates:
            flat = x.detach().flatten(2)
            for running, new in zip(self._stats(layer), (flat.mean(2).mean(0), flat.var(2).mean(0)),
                                    strict=True):  # fmt: skip
                running.copy_((1 - layer.momentum) * running + layer.momentum * new)
        elif layer.track_running_stats and keeps_statistics(layer) and not layer.training:
            if name in self.measured:
                self._batch_seen.setdefault(name, []).append(x.detach())
            if name in self.fixed or name not in self.measured or self.mode == "eval":
                mean, var = self.fixed.get(name, self._stats(layer))
                return self._normalize(layer, x, mean, var, residual)
        z = self._standardize(x, list(range(2, x.dim())), layer.eps)
        z = z if layer.weight is None else z * _view(layer.weight, x)
        z = z if layer.bias is None else z + _view(layer.bias, x)
        return _finish(layer, z, residual)

    def _group(self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        parts = input.reshape(len(input), layer.num_groups, -1)
        z = self._standardize(parts, [2], layer.eps).reshape(input.shape)
        z = z if layer.weight is None else z * _view(layer.weight, z)
        z = z if layer.bias is None else z + _view(layer.bias, z)
        return _finish(layer, z, residual)

    def _layer(self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        axes = list(range(input.dim() - len(layer.normalized_shape), input.dim()))
        z = self._standardize(input, axes, layer.eps)
        z = z if layer.weight is None else z * layer.weight
        z = z if layer.bias is None else z + layer.bias
        return _finish(layer, z, residual)

    def _rms(self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        axes = list(range(input.dim() - len(layer.normalized_shape), input.dim()))
        eps = torch.finfo(input.dtype).eps if layer.eps is None else layer.eps
        z = input / (input.square().mean(axes, keepdim=True) + eps).sqrt()
        z = z if layer.weight is None else z * layer.weight
        return _finish(layer, z, residual)

    def _channels(
        self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        z = self._standardize(input, [1], layer.eps)
        z = z if layer.weight is None else z * _view(layer.weight, z)
        z = z if layer.bias is None else z + _view(layer.bias, z)
        return _finish(layer, z, residual)

    def _constant(
        self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        return self._normalize(layer, input, layer.running_mean, layer.running_var, residual)

    def _half(self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        k = math.ceil(input.shape[1] / 2)
        z = self._standardize(input[:, :k], [2, 3], layer.eps)
        z = z if layer.weight is None else z * _view(layer.weight, z)
        z = z if layer.bias is None else z + _view(layer.bias, z)
        return _finish(layer, torch.cat([z, input[:, k:]], 1), residual)

    def _scale(self, _: str, layer: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        z = input * _view(layer.weight, input)
        z = z if layer.bias is None else z + _view(layer.bias, z)
        return _finish(layer, z, residual)


def _limit(limit: Any, t: int) -> float:
    if isinstance(limit, (int, float)):
        return float(limit)
    start, end, first, last = limit
    return float(start + (end - start) * min(max((t - first) / max(last - first, 1), 0.0), 1.0))
