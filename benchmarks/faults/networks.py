"""Small networks in plain PyTorch, with the normalizers that a case gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["alexnet", "lenet", "resnet", "vit"]

Make = Callable[[int], nn.Module]


def lenet(
    *,
    norm: Make | None = None,
    norm1d: Make | None = None,
    shared: bool = False,
    dropout: tuple[float, float] = (0.0, 0.0),
    bias: bool = False,
    **options: Any,
) -> nn.Sequential:
    """Build LeNet with 16 channels in both convolutions: (N, 1, 28, 28) to logits (N, 10).

    Args:
        norm, norm1d: make the normalizers of convolutions and of the dense layer; None is
            BatchNorm with ``options``.
        shared: one normalizer for both convolutions.
        dropout: rates before the dense layer's normalizer, and after it.
        bias: of the layers before normalizers, zeros to begin with.
    """
    norm = norm or (lambda channels: nn.BatchNorm2d(channels, **options))
    norm1d = norm1d or (lambda channels: nn.BatchNorm1d(channels, **options))
    first = norm(16)
    layers = [
        nn.Conv2d(1, 16, 5, padding=2, bias=False), first, nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 5, bias=False), first if shared else norm(16), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 96, bias=False),
    ]  # fmt: skip
    for layer in layers:
        if bias and isinstance(layer, (nn.Conv2d, nn.Linear)):  # draws no random numbers
            layer.bias = nn.Parameter(torch.zeros(len(layer.weight)))
    before, after = dropout
    layers += [nn.Dropout(before)] * bool(before)
    layers += [norm1d(96), nn.ReLU()]
    layers += [nn.Dropout(after)] * bool(after)
    return nn.Sequential(*layers, nn.Linear(96, 10))


class Block(nn.Module):
    """Residual block of two 3×3 convolutions."""

    def __init__(self, before: int, after: int, stride: int, norm: Make, gate: Make | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = norm(after)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = norm(after)
        self.gate = None if gate is None else Gate(after, gate)
        self.shortcut = (
            nn.Identity()
            if before == after
            else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm(after))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        if self.gate is not None:
            y = self.gate(y)
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


class Gate(nn.Module):
    """Squeeze and excitation with a normalizer in the branch, whose maps are 1×1."""

    def __init__(self, channels: int, norm: Make) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 16, 1, bias=False), norm(16), nn.ReLU(),
            nn.Conv2d(16, channels, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.branch(x)
        return out


def resnet(*, norm: Make | None = None, gate: Make | None = None, **options: Any) -> nn.Sequential:
    """Build a ResNet of three blocks, 16 to 64 channels: (N, 1, H, W) to logits (N, 10).

    Args:
        norm: makes the normalizers; None is BatchNorm with ``options``.
        gate: makes the normalizers in gates of the blocks; None is without gates.
    """
    norm = norm or (lambda channels: nn.BatchNorm2d(channels, **options))
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False), norm(16), nn.ReLU(),
        Block(16, 16, 1, norm, gate), Block(16, 32, 2, norm, gate), Block(32, 64, 2, norm, gate),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def alexnet(*, twice: bool = False, act_first: bool = False, **options: Any) -> nn.Sequential:
    """Build five convolutions and two dense layers in AlexNet's manner: (N, 1, 28, 28) to logits.

    Args:
        twice: normalize once more after each normalizer.
        act_first: normalize after the activation.
        options: of BatchNorm.
    """
    layers: list[nn.Module] = []
    channels = 1
    for after, pool in ((16, True), (32, True), (32, False), (32, False), (32, True)):
        norms = [nn.BatchNorm2d(after, **options) for _ in range(2 if twice else 1)]
        act = nn.ReLU()
        layers += [nn.Conv2d(channels, after, 3, 1, 1, bias=False)]
        layers += [act, *norms] if act_first else [*norms, act]
        layers += [nn.MaxPool2d(2)] * pool
        channels = after
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(288, 96), nn.ReLU(), nn.Dropout(0.2), nn.Linear(96, 10)
    )


class Siamese(nn.Module):
    """One encoder for an image and for its negative, as for two sensors of one scene.

    Args:
        shared: one set of normalizers for both; else one each, and everything else shared.
    """

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, 2, 2, bias=False)
        self.conv2 = nn.Conv2d(16, 32, 3, 2, 1, bias=False)
        count = 1 if shared else 2
        self.norm1 = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(count)])
        self.norm2 = nn.ModuleList([nn.BatchNorm2d(32) for _ in range(count)])
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = []
        for i, view in enumerate((x, 2 - 0.5 * x)):
            i = min(i, len(self.norm1) - 1)
            y = torch.relu(self.norm1[i](self.conv1(view)))
            features.append(torch.relu(self.norm2[i](self.conv2(y))).mean((2, 3)))
        out: Tensor = self.head(torch.cat(features, 1))
        return out


class ViT(nn.Module):
    """Transformer on 4×4 patches of 7×7 pixels, normalizing first."""

    def __init__(self, dim: int = 48, depth: int = 2, **options: Any) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 7, 7)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, dim))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, 4, 2 * dim, 0.0, batch_first=True, norm_first=True, **options
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            tokens = layer(tokens)
        out: Tensor = self.head(self.norm(tokens.mean(1)))
        return out


def vit(**options: Any) -> ViT:
    """Build the transformer: (N, 1, 28, 28) to logits (N, 10)."""
    return ViT(**options)
