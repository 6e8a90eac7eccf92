"""Small random networks of convolutions, normalizations and what stands between them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

import normkit as nk

Step = Callable[[list[Tensor]], Tensor]


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give normalizations statistics and weights as from training, negative γ among them."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.2, 3, generator=generator)
    with torch.no_grad():
        for module in model.modules():
            norm = isinstance(module, (nk.Scale, nn.GroupNorm, _NormBase))
            for p in module.parameters(recurse=False) if norm else ():
                p.normal_(0.3, 1, generator=generator)
    return model.eval()


class RandomNet(nn.Module):
    """Network drawn by a seed: steps that take some of the values so far and make another."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.layers = nn.ModuleList()
        self.steps: list[tuple[Step, tuple[int, ...]]] = []
        self.channels = [self.random.choice((2, 4))]
        for _ in range(self.random.randint(4, 12)):
            self._add()
        self.outputs = [len(self.channels) - 1]
        if self.random.random() < 0.2:
            self.outputs.append(self.random.randrange(len(self.channels)))
        settle(self.double(), seed)
        for layer in self.layers:
            if isinstance(layer, _NormBase) and layer.affine and layer.running_mean is not None:
                self._ease(layer)

    def _ease(self, layer: Any) -> None:
        """Give some normalizations no negative scale, some of these no shift either."""
        kind = self.random.random()
        with torch.no_grad():
            if kind < 0.4:
                layer.weight.abs_()
            if kind < 0.2:
                layer.bias.zero_()
                layer.running_mean.zero_()

    def _pick(self) -> int:
        # Mostly the last, so that chains occur.
        last = len(self.channels) - 1
        return last if self.random.random() < 0.8 else self.random.randint(0, last)

    def _step(self, after: int, step: Step, *sources: int) -> None:
        self.steps.append((step, sources))
        self.channels.append(after)

    def _elementwise(self, source: int, *functions: Callable[[Tensor], Tensor]) -> None:
        function = self.random.choice(functions)
        self._step(self.channels[source], lambda v: function(v[0]), source)

    def _add(self) -> None:
        kinds = ("conv", "conv", "conv", "up", "norm", "norm", "norm", "norm", "again", "function",
                 "pool", "pad", "add", "cat", "shape", "group", "write")  # fmt: skip
        getattr(self, f"_add_{self.random.choice(kinds)}")(self._pick())

    def _call(self, layer: nn.Module, after: int, source: int) -> None:
        fits = [i for i, n in enumerate(self.channels) if n == self.channels[source]]
        if isinstance(layer, nk.BatchNorm2d) and self.random.random() < 0.3:
            other = self.random.choice(fits)
            self._step(after, lambda v: layer(v[0], _same(v[1], v[0])), source, other)
        else:
            self._step(after, lambda v: layer(v[0]), source)

    def _add_layer(self, layer: nn.Module, after: int, source: int) -> None:
        self.layers.append(layer)
        self._call(layer, after, source)

    def _add_conv(self, source: int) -> None:
        choose, after = self.random.choice, self.random.choice((2, 4))
        layer = nn.Conv2d(
            self.channels[source], after, choose((1, 3)), padding=choose((0, 1)),
            dilation=choose((1, 1, 2)), groups=choose((1, 2)), bias=choose((True, False)),
            padding_mode=choose(("zeros", "zeros", "circular")),
        )  # fmt: skip
        self._add_layer(layer, after, source)

    def _add_up(self, source: int) -> None:
        choose, after = self.random.choice, self.random.choice((2, 4))
        kernel, stride = choose(((1, 1), (2, 1), (2, 2)))
        layer = nn.ConvTranspose2d(
            self.channels[source], after, kernel, stride, groups=choose((1, 2)),
            bias=choose((True, False)),
        )  # fmt: skip
        self._add_layer(layer, after, source)

    def _add_norm(self, source: int) -> None:
        c, choose = self.channels[source], self.random.choice
        affine, tracks = self.random.random() < 0.8, choose((True, False))
        makers: tuple[Callable[[], nn.Module], ...] = (
            lambda: nn.BatchNorm2d(c, affine=affine),
            lambda: nk.BatchNorm2d(c, affine=affine),
            lambda: nk.BatchNorm2d(c, act=choose(("relu", "silu"))),
            lambda: nk.Scale(c, bias=affine),
            lambda: nk.FrozenBatchNorm2d(c),
            lambda: nn.BatchNorm2d(c, track_running_stats=tracks),
            lambda: nn.InstanceNorm2d(c, affine=affine, track_running_stats=True),
            lambda: nn.SyncBatchNorm(c),
        )
        self._add_layer(choose(makers)(), c, source)

    def _add_group(self, source: int) -> None:
        c = self.channels[source]
        self._add_layer(nn.GroupNorm(2, c, affine=self.random.random() < 0.7), c, source)

    def _add_again(self, _: int) -> None:
        if not len(self.layers):
            return
        layer = self.random.choice(list(self.layers))
        before, after = _channels(layer)
        fits = [i for i, n in enumerate(self.channels) if n == before]
        if fits:
            self._call(layer, after, self.random.choice(fits))

    def _add_function(self, source: int) -> None:
        self._elementwise(source, F.relu, torch.sigmoid, lambda x: F.leaky_relu(x, 0.1),
                          lambda x: F.dropout(x, 0.5, False), lambda x: x * 2)  # fmt: skip

    def _add_write(self, source: int) -> None:
        change = self.random.choice((F.relu_, lambda x: x.mul_(2), lambda x: x[:, :1].add_(1)))
        self._elementwise(source, lambda x: (change(x), x)[1])

    def _add_pool(self, source: int) -> None:
        count, pad, mode = (
            self.random.choice(c) for c in ((True, False), (0, 1), ("nearest", "bilinear"))
        )
        self._elementwise(
            source,
            lambda x: F.max_pool2d(x, 3, 1, 1),
            lambda x: F.avg_pool2d(x, 3, 1, pad, False, count),
            lambda x: F.interpolate(x, scale_factor=2, mode=mode),
            lambda x: F.adaptive_avg_pool2d(x, 3),
            lambda x: F.adaptive_max_pool2d(x, 3),
        )

    def _add_pad(self, source: int) -> None:
        mode = self.random.choice(("constant", "replicate", "reflect"))
        self._elementwise(source, lambda x: F.pad(x, (1, 0, 1, 0), mode=mode))

    def _add_add(self, source: int) -> None:
        c, other = self.channels[source], self._pick()
        if self.channels[other] == c:
            self._step(c, lambda v: _same(v[0], v[1]) + v[1], source, other)

    def _add_cat(self, source: int) -> None:
        other = self._pick()
        both = self.channels[source] + self.channels[other]
        self._step(both, lambda v: torch.cat([_same(v[0], v[1]), v[1]], 1), source, other)

    def _add_shape(self, source: int) -> None:
        self._elementwise(
            source,
            lambda x: x.flatten(2).unflatten(2, x.shape[2:]),
            lambda x: x.transpose(2, 3),
            lambda x: x.contiguous(memory_format=torch.channels_last),
            lambda x: x.flip(2),
            lambda x: x.flip(1),
            lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
            lambda x: x[:, :, 1:] if x.shape[2] > 3 else x,
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [x.clone()]
        for step, sources in self.steps:
            values.append(step([values[i] for i in sources]))
        return [values[i].clone() for i in self.outputs]


def _channels(layer: Any) -> tuple[int, int]:
    if hasattr(layer, "in_channels"):
        return layer.in_channels, layer.out_channels
    number = getattr(layer, "num_features", 0) or layer.num_channels
    return number, number


def _same(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` with the height and width of ``like``."""
    return x if x.shape == like.shape else F.interpolate(x, like.shape[2:])
