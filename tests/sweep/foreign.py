"""Layers of third parties: subclasses that change something or nothing, and ones of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from normkit.statistics import StatsSpec, stats_spec

__all__ = [
    "BatchNormAct2d",
    "ChannelsLast",
    "DetrFrozenBatchNorm2d",
    "FrozenBatchNorm2d",
    "LastAxis",
    "Masked",
    "OwnNorm",
    "Plain1d",
    "Plain2d",
    "PlainOurs1d",
    "PlainOurs2d",
    "Prescaled",
    "PrescaledOurs",
    "Registered",
]


class Plain1d(nn.BatchNorm1d):
    """A subclass that changes nothing."""


class Plain2d(nn.BatchNorm2d):
    """A subclass that changes nothing."""


class PlainOurs1d(nk.BatchNorm1d):
    """A subclass that changes nothing."""


class PlainOurs2d(nk.BatchNorm2d):
    """A subclass that changes nothing."""


class LastAxis(nn.BatchNorm1d):
    """Channels on the last axis: (N, L, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Masked(nn.BatchNorm2d):
    """Moments of the positive values only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * (x > 0))


class Prescaled(nn.BatchNorm2d):
    """Normalizes something other than its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(3 * x + 1)


class PrescaledOurs(nk.BatchNorm2d):
    """Normalizes something other than its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(3 * x + 1)


class BatchNormAct2d(nn.BatchNorm2d):
    """Normalization with dropout and activation in its forward, as timm's."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class ChannelsLast(nn.Module):
    """A layer of one's own over the last axis, with buffers of other names; not registered."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = x.movedim(1, -1)
        if self.training:
            flat = y.detach().flatten(0, -2)
            self.running_mean.lerp_(flat.mean(0), 0.1)
            self.running_var.lerp_(flat.var(0), 0.1)
        y = (y - self.running_mean) / (self.running_var + 1e-5).sqrt() * self.weight
        return y.movedim(-1, 1)


class OwnNorm(nn.Module):
    """A layer of one's own, with PyTorch's names for its buffers; not registered."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, None, True)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight)


class Registered(nn.Module):
    """A layer of one's own, registered, with other names; evaluation only uses its tensors."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.register_buffer("mu", torch.zeros(channels))
        self.register_buffer("v", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (x.dim() - 2)
        if self.training:
            axes = [0, *range(2, x.dim())]
            mean, var = x.mean(axes), x.var(axes, unbiased=False)
            with torch.no_grad():
                self.mu.lerp_(mean, 0.1)
                self.v.lerp_(var, 0.1)
        else:
            mean, var = self.mu, self.v
        return (x - mean.view(shape)) / (var.view(shape) + self.eps).sqrt()


@stats_spec.register(Registered)
def _(layer: Registered) -> StatsSpec:
    return StatsSpec("mu", "v")


class FrozenBatchNorm2d(nn.Module):
    """Constant normalization, as torchvision's and detectron2's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        for name in ("weight", "bias", "running_mean", "running_var"):
            values = torch.ones if name in ("weight", "running_var") else torch.zeros
            self.register_buffer(name, values(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class DetrFrozenBatchNorm2d(FrozenBatchNorm2d):
    """Constant normalization, as transformers'."""
