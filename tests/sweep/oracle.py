"""Every layer once more, in plain float64 operations of torch: no code of the package is used."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

import normkit as nk
from normkit.nn.filterresponsenorm import FilterResponse
from normkit.nn.switchablenorm import Switchable
from tests.sweep import pieces
from tests.sweep.formulas import Formulas, finish, view

__all__ = ["Oracle", "doubled", "keeps_statistics", "moments_of", "overrides_forward", "unwrapped"]


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
    # accelerate puts a class before the layer's own, which computes the same.
    classes = [cls for cls in type(layer).__mro__ if "_computes" not in vars(cls)]
    by = next(cls for cls in classes if "forward" in vars(cls))
    return not by.__module__.startswith(("torch.", "normkit."))


def keeps_statistics(layer: nn.Module) -> bool:
    """Return True for a layer with a running mean and variance that evaluation uses."""
    if isinstance(layer, pieces.Registered):
        return True
    return getattr(layer, "running_mean", None) is not None


def moments_of(calls: list[Tensor], per_sample: bool) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance by channel of everything a layer was given."""
    if per_sample:
        flat = torch.cat([x.double().flatten(2) for x in calls if x.numel()])
        return flat.mean(2).mean(0), flat.var(2).mean(0)
    rows = torch.cat([x.double().movedim(1, -1).flatten(0, -2) for x in calls])
    return rows.mean(0), rows.var(0)


class Oracle(Formulas):
    """A model whose normalization layers compute by the formulas below.

    Attributes:
        mode: "batch": measured layers normalize by the moments of their input; "eval": by their
            buffers; "train": as training does, buffers included.
        measured: names of the layers that are measured; the others run as in evaluation.
        fixed: moments that measured layers normalize with, by name.
        seen: by name, batch by batch, the inputs of each call.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = torch.float64) -> None:
        super().__init__()
        self.model = unwrapped(model)
        if dtype is not None:
            self.model.to(dtype)
        self.mode = "eval"
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
            (Switchable, self._switchable), (nk.ZeroCenteredRMSNorm, self._zero_centered),
            (FilterResponse, self._response),
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
            var = (part - view(mean, part)).square().mean(axes)
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
        z = (x - view(mean, x)) / view((var + layer.eps).sqrt(), x) * view(r, x) + view(d, x)
        if t == 0 and (layer.momentum is None or layer.average != "exponential"):
            # These averages leave out what the buffers start with: nothing is remembered yet.
            z = (x - view(mean, x)) / view((var + layer.eps).sqrt(), x)
        weight, bias = self._affine(layer)
        z = z if weight is None else z * view(weight, x)
        z = z if bias is None else z + view(bias, x)
        return finish(layer, z, residual)

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

    def _switchable(
        self, name: str, layer: Any, input: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        rows = input.movedim(1, -1).flatten(0, -2)
        mean, var = rows.mean(0), rows.var(0, unbiased=False)
        tracks = keeps_statistics(layer)
        if layer.training and tracks and layer.track_running_stats and self.updates:
            self._update(layer, rows.detach().mean(0), rows.detach().var(0))
        elif tracks and not layer.training:
            if name in self.measured:
                self._batch_seen.setdefault(name, []).append(input.detach())
            if name in self.fixed or name not in self.measured or self.mode == "eval":
                mean, var = self.fixed.get(name, self._stats(layer))
        space = list(range(2, input.dim()))
        moments = [
            (input.mean(axes, keepdim=True), input.var(axes, unbiased=False, keepdim=True))
            for axes in (space, [1, *space])
        ]
        moments.append((view(mean, input), view(var, input)))
        shares = layer.mean_weight.softmax(0), layer.var_weight.softmax(0)
        mixed, spread = (
            sum(share * moment[i] for share, moment in zip(shares[i], moments, strict=True))
            for i in (0, 1)
        )
        self._note(mixed, spread, layer.eps)  # type: ignore[arg-type]
        z = (input - mixed) / (spread + layer.eps).sqrt()
        z = z if layer.weight is None else z * view(layer.weight, z)
        z = z if layer.bias is None else z + view(layer.bias, z)
        return finish(layer, z, residual)

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
        z = z if layer.weight is None else z * view(layer.weight, x)
        z = z if layer.bias is None else z + view(layer.bias, x)
        return finish(layer, z, residual)


def _limit(limit: Any, t: int) -> float:
    if isinstance(limit, (int, float)):
        return float(limit)
    start, end, first, last = limit
    return float(start + (end - start) * min(max((t - first) / max(last - first, 1), 0.0), 1.0))
