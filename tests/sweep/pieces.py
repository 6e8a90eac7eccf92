"""Vocabulary of the sweep's programs: foreign layers, structures, and data in every shape.

A printed program begins with ``from tests.sweep.pieces import *`` and runs as it stands.
"""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import normkit as nk
from normkit.statistics import StatsSpec, stats_spec

__all__ = [
    "Again",
    "Attention",
    "AveragedModel",
    "BatchNormAct2d",
    "Bounded",
    "Branches",
    "ChannelsLast",
    "DetrFrozenBatchNorm2d",
    "F",
    "FrozenBatchNorm2d",
    "Holds",
    "Keyword",
    "LastAxis",
    "Levels",
    "Masked",
    "OwnNorm",
    "Plain1d",
    "Plain2d",
    "PlainOurs1d",
    "PlainOurs2d",
    "Prescaled",
    "PrescaledOurs",
    "Registered",
    "Residual",
    "Returns",
    "ReturnsLoss",
    "Shortcut",
    "Siamese",
    "Swap",
    "Twice",
    "TwoInputs",
    "Unused",
    "Variadic",
    "as_dicts",
    "as_lists",
    "as_loader",
    "as_nested",
    "as_pairs",
    "as_scalars",
    "as_two",
    "bound_weight",
    "copy",
    "data",
    "half_norm",
    "labels",
    "nk",
    "nn",
    "norm",
    "parametrizations",
    "parametrize",
    "prune",
    "prune_weight",
    "reparametrize",
    "replace_forward",
    "scramble",
    "step",
    "stream",
    "tie",
    "to_inference",
    "torch",
]  # fmt: skip


# Foreign layers.


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


# Structures.


class Residual(nn.Module):
    """Add a body's output to its input."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Shortcut(nn.Module):
    """Hand a residual to a layer of ours."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, residual=x.roll(1, 0) / 2)


class Branches(nn.Module):
    """Concatenate the bodies' outputs along the channels; one is a pooling branch to 1×1."""

    def __init__(self, *bodies: nn.Module) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [body(x) for body in self.bodies]
        return torch.cat([y.expand(-1, -1, *x.shape[2:]) for y in outputs], 1)


class Twice(nn.Module):
    """Call a body twice in a row."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.body(x).sin() + x)


class Again(nn.Module):
    """Call a body a first time, and a second time for only some batches."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.body(2 * x) + y if len(x) % 2 == 0 else y


class Levels(nn.Module):
    """Share one body among levels of unlike scale, as a detector's head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(y) for y in (x, 4 * x + 6, x / 8 - 3)], 1)


class Siamese(nn.Module):
    """Compare a body's outputs on two views."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) - self.body(x.flip(0) + 1)


class Swap(nn.Module):
    """Swap the last two axes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Attention(nn.Module):
    """A transformer's layer on (N, C, L)."""

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(channels, 1, 4, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


class Unused(nn.Module):
    """Own a layer that is never called."""

    def __init__(self, body: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.body, self.spare = body, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Holds(nn.Module):
    """Keep the normalization of a body in evaluation mode whatever train() is told."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def train(self, mode: bool = True) -> Holds:
        super().train(mode)
        for module in self.body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class TwoInputs(nn.Module):
    """Take two inputs."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.body(x * scale.view(-1, *[1] * (x.dim() - 1)))


class Keyword(nn.Module):
    """Take an option by keyword, and labels that it ignores."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, labels: Tensor | None = None, *, shift: float = 0.0) -> Tensor:
        return self.body(x + shift if shift else x)


class Variadic(nn.Module):
    """Take whatever keywords come."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, **inputs: Any) -> Tensor:
        return self.body(inputs["x"])


@dataclasses.dataclass
class Output:
    """A model's output with a name."""

    logits: Tensor
    hidden: Any = None


class Returns(nn.Module):
    """Return a body's output in some container."""

    def __init__(self, body: nn.Module, how: str) -> None:
        super().__init__()
        self.body, self.how = body, how

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        if self.how == "tuple":
            return y, x
        if self.how == "dict":
            return {"logits": y, "hidden": None}
        return Output(y) if self.how == "dataclass" else [y]


class ReturnsLoss(nn.Module):
    """Return loss and scores, as transformers' models do with labels."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        y = self.body(x)
        out = {} if labels is None else {"loss": F.cross_entropy(y.flatten(1).float(), labels)}
        return {**out, "logits": y}


class Bounded(nn.Module):
    """A parametrization."""

    def forward(self, w: Tensor) -> Tensor:
        return w.tanh() + 1


def norm(model: nn.Module, index: int) -> nn.Module:
    """Return the ``index``-th module that normalizes, counted round and round."""
    every = [m for m in model.modules() if "Norm" in type(m).__name__ or hasattr(m, "running_mean")]
    return every[index % len(every)] if every else model


def tie(model: nn.Module) -> None:
    """Let all batch normalizations of one width share γ and β."""
    first: dict[int, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            other = first.setdefault(module.weight.numel(), module)
            if module.weight.shape == other.weight.shape:
                module.weight, module.bias = other.weight, other.bias


def scramble(model: nn.Module) -> None:
    """Give every normalization layer γ, β and statistics of its own."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            for name, values in (*module._parameters.items(), *module._buffers.items()):
                if values is None or torch.nn.parameter.is_lazy(values):
                    continue
                noise = torch.rand(values.shape, generator=g)
                if name in ("running_mean", "mu"):
                    values.copy_(noise - 0.5)
                elif name in ("running_var", "v") or (name == "weight" and values.dim() == 1):
                    values.copy_(noise + 0.5)
                elif name == "bias":
                    values.copy_(noise - 0.5)


def prune_weight(module: nn.Module) -> None:
    """Prune γ, if there is one."""
    if isinstance(getattr(module, "weight", None), nn.Parameter):
        prune.l1_unstructured(module, "weight", 0.5)


def bound_weight(module: nn.Module) -> None:
    """Parametrize γ, if there is one."""
    if isinstance(getattr(module, "weight", None), nn.Parameter):
        parametrize.register_parametrization(module, "weight", Bounded())


def replace_forward(module: nn.Module) -> None:
    """Replace the forward of one layer, as libraries that wrap layers do."""
    cls = type(module)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return cls.forward(self, *args, **kwargs)

    module.forward = types.MethodType(forward, module)  # type: ignore[method-assign]


def half_norm(module: nn.Module) -> None:
    """Keep one layer in float32, as mixed-precision recipes do."""
    module.float()


def reparametrize(model: nn.Module, how: Any) -> None:
    """Parametrize the weight of the first convolution or linear layer."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            how(module)
            return


def to_inference(module: nn.Module) -> None:
    """Give a layer buffers made in inference mode, as a model loaded there has them."""
    with torch.inference_mode():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.clone()


def step(model: nn.Module) -> None:
    """Leave gradients behind, as a step does."""
    for p in model.parameters():
        p.grad = torch.ones_like(p)


# Data.


def data(
    sizes: Iterable[int],
    shape: tuple[int, ...],
    values: str = "normal",
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Return batches of these sizes."""
    sizes = list(sizes)
    g = torch.Generator().manual_seed(len(sizes) + sum(sizes))
    if values == "tokens":
        return [torch.randint(5, (n, *shape), generator=g) for n in sizes]
    x = torch.randn(sum(sizes), *shape, generator=g, dtype=torch.float64)
    if values == "sorted":
        x = x.sort(0).values
    elif values == "constant":
        x = torch.full_like(x, 2.0)
    elif values == "offset":
        x = x / 10 + 100
    elif values == "huge":
        x = x * 1e25
    elif values == "unlike":
        x = x * (1 + torch.arange(len(x)).view(-1, *[1] * len(shape)))
    elif values == "nan" and x.numel():
        x.view(-1)[-1] = torch.nan
    elif values == "infinite" and x.numel():
        x.view(-1)[-1] = torch.inf
    return list(x.to(dtype).split(sizes))


def scales(x: Tensor) -> Tensor:
    """Return the second input that goes with an input."""
    return torch.linspace(1, 2, len(x), dtype=torch.float64).to(x.dtype)


def as_two(batches: list[Tensor]) -> list[Any]:
    """{"x": x, "scale": scale, "labels": labels}."""
    return [{"x": x, "scale": scales(x), "labels": labels(x)} for x in batches]


def labels(x: Tensor) -> Tensor:
    """Return a label for each sample; every third is to be ignored."""
    y = torch.arange(len(x)) % 2
    y[2::3] = -100
    return y


def as_pairs(batches: list[Tensor]) -> list[Any]:
    """(x, labels)."""
    return [(x, labels(x)) for x in batches]


def as_lists(batches: list[Tensor]) -> list[Any]:
    """[x, labels]."""
    return [[x, labels(x)] for x in batches]


def as_dicts(batches: list[Tensor]) -> list[Any]:
    """{"x": x, "labels": labels}."""
    return [{"x": x, "labels": labels(x)} for x in batches]


def as_nested(batches: list[Tensor]) -> list[Any]:
    """((x, x), {"labels": labels})."""
    return [((x, x), {"labels": labels(x)}) for x in batches]


def as_scalars(batches: list[Tensor]) -> list[Any]:
    """A dictionary that begins with a number and a string."""
    return [{"id": 3, "name": "a", "x": x} for x in batches]


def as_loader(batches: list[Tensor], size: int, **options: Any) -> DataLoader[Any]:
    """A DataLoader over all samples, in batches of ``size``."""
    x = torch.cat(batches)
    return DataLoader(TensorDataset(x, labels(x)), batch_size=size, **options)


def stream(batches: Iterable[Any]) -> Iterator[Any]:
    """A generator, to be gone over once."""
    yield from batches
