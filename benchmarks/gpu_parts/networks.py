"""Whole training steps: ResNet-50 and the denoising U-Net of diffusion, with either side's layers.

Both networks are written once; ``norm(channels, act)`` makes a layer of ``torch.nn`` followed by
its activation, or one of this package that has the activation in it. Either takes the residual as a
second input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from benchmarks.gpu_parts.timing import Measure
from normkit.bench.layers import SeparateModules
from normkit.bench.stopwatch import time_interleaved

__all__ = ["NETWORKS", "Network", "time_steps"]

Norm = Callable[..., nn.Module]
GROUPS = 32


def _batch_norm(side: str) -> Norm:
    def make(channels: int, act: bool = True) -> nn.Module:
        if side == "ours":
            return nk.BatchNorm2d(channels, act="relu" if act else None)
        return SeparateModules(nn.BatchNorm2d(channels), nn.ReLU(inplace=True) if act else None)

    return make


def _group_norm(side: str) -> Norm:
    def make(channels: int) -> nn.Module:
        if side == "ours":
            return nk.GroupNorm(GROUPS, channels, act="silu")
        return SeparateModules(nn.GroupNorm(GROUPS, channels), nn.SiLU())

    return make


def _conv(
    before: int, after: int, kernel: int = 3, stride: int = 1, bias: bool = False
) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=bias)


class Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        after = 4 * width
        self.conv1, self.norm1 = _conv(before, width, 1), norm(width)
        self.conv2, self.norm2 = _conv(width, width, 3, stride), norm(width)
        self.conv3, self.norm3 = _conv(width, after, 1), norm(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(_conv(before, after, 1, stride), norm(after, act=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x))
        y = self.norm2(self.conv2(y))
        return self.norm3(self.conv3(y), self.shortcut(x))


class ResNet50(nn.Module):
    """He et al. 2015, arXiv 1512.03385, with the stride in the 3×3 convolution."""

    def __init__(self, side: str, width: int = 64, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> None:
        super().__init__()
        norm = _batch_norm(side)
        layers: list[nn.Module] = [_conv(3, width, 7, 2), norm(width), nn.MaxPool2d(3, 2, 1)]
        before = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                stride = 2 if stage and not block else 1
                layers.append(Bottleneck(before, width << stage, stride, norm))
                before = 4 * (width << stage)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class ResBlock(nn.Module):
    def __init__(self, before: int, after: int, norm: Norm) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), _conv(before, after, bias=True)
        self.norm2, self.conv2 = norm(after), _conv(after, after, bias=True)
        self.shortcut = nn.Identity() if before == after else _conv(before, after, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.norm1(x))
        return self.shortcut(x) + self.conv2(self.norm2(y))


class UNet(nn.Module):
    """The convolutional part of the U-Net of Ho et al. 2020, arXiv 2006.11239, appendix B."""

    def __init__(self, side: str, width: int = 128, scales: tuple[int, ...] = (1, 2, 2, 4)) -> None:
        super().__init__()
        norm = _group_norm(side)
        self.first = _conv(3, width, bias=True)
        down, channels, before = [], [width], width
        for scale in scales:
            for _ in range(2):
                down.append(ResBlock(before, width * scale, norm))
                before = width * scale
                channels.append(before)
        self.down, self.middle = nn.ModuleList(down), ResBlock(before, before, norm)
        up = []
        for scale in reversed(scales):
            for _ in range(2):
                up.append(ResBlock(before + channels.pop(), width * scale, norm))
                before = width * scale
        self.up = nn.ModuleList(up)
        self.norm, self.last = norm(before), _conv(before, 3, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        skips = []
        for i, block in enumerate(self.down):
            x = block(x)
            skips.append(x)
            if i % 2 and i + 1 < len(self.down):
                x = F.avg_pool2d(x, 2)
        x = self.middle(x)
        for i, block in enumerate(self.up):
            x = block(torch.cat([x, skips.pop()], 1))
            if i % 2 and i + 1 < len(self.up):
                x = F.interpolate(x, scale_factor=2.0)
        return self.last(self.norm(x))


class Network(NamedTuple):
    """A network with the size of its batch; ``toy`` is as little of it as still has every part."""

    name: str
    make: Callable[[str], nn.Module]
    shape: tuple[int, ...]
    toy_make: Callable[[str], nn.Module]
    toy_shape: tuple[int, ...]


NETWORKS = (
    Network(
        "ResNet-50", ResNet50, (64, 3, 224, 224), lambda side: ResNet50(side, 4, (2,)),
        (2, 3, 16, 16),
    ),
    Network(
        "diffusion U-Net", UNet, (16, 3, 64, 64), lambda side: UNet(side, 32, (1, 1)),
        (1, 3, 4, 4),
    ),
)  # fmt: skip


def time_steps(
    network: Network,
    layout: str,
    device: torch.device,
    measure: Measure,
    *,
    seconds: float,
    toy: bool = False,
    compiler: str | None = None,
    min_rounds: int = 5,
) -> dict[str, Any]:
    """Time a training step with either side's layers, in turn; return a record.

    A step resets the gradients and runs forward under autocast to bfloat16, loss, backward and SGD
    with momentum. Both sides start from the same weights, and the losses of their first steps are
    in the record.
    """
    torch.manual_seed(0)
    make, shape = network[3:] if toy else network[1:3]
    memory_format = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    images = torch.randn(shape, device=device).contiguous(memory_format=memory_format)
    labels = torch.randint(10, (shape[0],), device=device)
    models = {
        side: make(side).to(device, memory_format=memory_format) for side in ("torch", "ours")
    }
    _copy_weights(models["torch"], models["ours"])
    runs, losses, peaks = {}, {}, {}
    for side, model in models.items():
        torch._dynamo.reset()
        step = _step(model, images, labels, compiler)
        losses[side] = float(step())
        runs[side] = step
    for side, step in runs.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            step()
            peaks[side] = torch.cuda.max_memory_allocated(device) - before
    timed = {side: (lambda step=step: _drop(step())) for side, step in runs.items()}
    times = time_interleaved(
        timed, seconds=seconds, min_rounds=min_rounds, max_rounds=100, measure=measure
    )
    return {
        "network": network.name,
        "shape": list(shape),
        "layout": layout,
        "compiled": compiler is not None,
        "losses": losses,
        "ms": {side: 1e3 * times.of(side) for side in runs},
        "ratio": list(times.ratio("torch", "ours")),
        "rounds": times.rounds,
        "peak_bytes": peaks,
    }


def _step(
    model: nn.Module, images: Tensor, labels: Tensor, compiler: str | None
) -> Callable[[], Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9)
    run = model if compiler is None else torch.compile(model, backend=compiler, dynamic=False)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16):
            y = run(images)
        loss = F.mse_loss(y.float(), images) if y.dim() == 4 else F.cross_entropy(y.float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    # A layer of torch.nn is in a module with its activation: names differ, and order does not.
    values = list(source.state_dict().values())
    names = list(target.state_dict())
    target.load_state_dict(dict(zip(names, values, strict=True)))


def _drop(_: object) -> None:
    pass
