"""A small network for image restoration: one subnetwork of HINet.

Source: Chen et al. 2021, *HINet: Half Instance Normalization Network for Image Restoration*,
arXiv 2105.06086, section 3; details that the text leaves open are as in the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normkit.errors import OptionError, message
from normkit.lab.models.layers import Layers
from normkit.lab.models.parts import Image, initialise, whole

__all__ = ["Denoiser", "RestoringBlock", "denoiser"]


class RestoringBlock(nn.Module):
    """``act(conv(act(norm(conv(x))))) + conv1×1(x)``: HINet's block, with any normalizer.

    Args:
        before: channels in.
        after: channels out.
        norm: makes the normalizer; ``nn.Identity`` for the blocks of the way up.
        layers: whose activation follows each convolution.
    """

    def __init__(self, before: int, after: int, norm: nn.Module, layers: Layers) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm1 = norm
        self.act1 = layers.activation()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.act2 = layers.activation()
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act1(self.norm1(self.conv1(x)))
        y = self.act2(self.conv2(y))
        shortcut: Tensor = self.shortcut(x)
        return y + shortcut


class Denoiser(nn.Module):
    """``x`` plus the output of a U-Net of :class:`RestoringBlock`; see :func:`denoiser`."""

    def __init__(self, layers: Layers, channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth)]
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        before = width
        for level, after in enumerate(widths):
            self.down.append(RestoringBlock(before, after, layers.conv_norm(after), layers))
            if level < depth - 1:
                self.shrink.append(nn.Conv2d(after, after, 4, stride=2, padding=1, bias=False))
            before = after
        self.enlarge = nn.ModuleList()
        self.bridge = nn.ModuleList()
        self.up = nn.ModuleList()
        for after in reversed(widths[:-1]):
            self.enlarge.append(nn.ConvTranspose2d(2 * after, after, 2, stride=2))
            self.bridge.append(nn.Conv2d(after, after, 3, padding=1))
            self.up.append(RestoringBlock(2 * after, after, nn.Identity(), layers))
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        passed = []
        for level, block in enumerate(self.down):
            y = block(y)
            if level < len(self.shrink):
                passed.append(y)
                y = self.shrink[level](y)
        for enlarge, bridge, block in zip(self.enlarge, self.bridge, self.up, strict=True):
            y = block(torch.cat([enlarge(y), bridge(passed.pop())], dim=1))
        residual: Tensor = self.last(y)
        return x + residual


def denoiser(
    layers: Layers, image: Image, *, width: int = 16, depth: int = 2, init: str = "pytorch"
) -> Denoiser:
    """Build a U-Net that learns the correction to add to the noisy image.

    The normalizer stands where HINet has half instance normalization: after the first convolution
    of each block on the way down, and nowhere on the way up. HINet itself is two such networks in
    a row, 64 channels wide and five levels deep, and the source's activation is
    ``act="leaky_relu_0.2"``.

    Args:
        width: channels of the first level; each further level has twice as many.
        depth: levels, from 1; between two of them the sides are halved.
        init: see :func:`normkit.lab.models.parts.initialise`.
    """
    layers.conv_only("denoiser")
    whole("width", width)
    whole("depth", depth)
    if image.size % 2 ** (depth - 1):
        raise OptionError(
            message(
                f"a size that can be halved {depth - 1} times, for a denoiser of depth {depth}",
                f"size={image.size}",
                f"use a multiple of {2 ** (depth - 1)}, or less depth",
            )
        )
    model = Denoiser(layers, image.channels, width, depth)
    initialise(model, init)
    return model
