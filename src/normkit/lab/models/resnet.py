"""ResNet-18 to -152, the narrow ResNet-20 to -110, and plain networks of equal depth.

Source: He et al. 2015, *Deep Residual Learning for Image Recognition*, arXiv 1512.03385.
"""

from __future__ import annotations

import functools
from collections import OrderedDict

import torch
from torch import nn

from normkit.errors import OptionError, message
from normkit.lab.models.layers import Layers
from normkit.lab.models.parts import Image, Maker, initialise, too_small, whole

__all__ = ["RESNETS", "Residual", "resnet"]

# (blocks in each stage, bottleneck blocks?): four stages for ImageNet, table 1 of the paper, and
# three for CIFAR, §4.2.
_DEPTHS: dict[int, tuple[tuple[int, ...], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    **{depth: (((depth - 2) // 6,) * 3, False) for depth in (20, 32, 44, 56, 110)},
}


class Residual(nn.Module):
    """``act(body(x) + shortcut(x))``, or ``act(body(x))`` without a shortcut.

    Args:
        body: convolutions, normalizers and activations, ending in a normalizer.
        shortcut: ``nn.Identity`` where the sizes agree, else a 1×1 convolution and a normalizer;
            None for the plain network.
        act: the activation after the sum.
    """

    def __init__(self, body: nn.Sequential, shortcut: nn.Module | None, act: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        out: torch.Tensor = self.act(y)
        return out


def _conv(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    # No bias: the normalizer's β takes its place.
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)


def _block(
    layers: Layers, before: int, width: int, stride: int, bottleneck: bool, residual: bool
) -> Residual:
    after = 4 * width if bottleneck else width
    # (channels in, channels out, kernel, stride) of each convolution in the body. The stride of a
    # bottleneck sits on its 3×3 convolution; the paper has it on the first 1×1, which throws away
    # three quarters of the input. The parameters are the same.
    convs = (
        [(before, width, 1, 1), (width, width, 3, stride), (width, after, 1, 1)]
        if bottleneck
        else [(before, width, 3, stride), (width, width, 3, 1)]
    )
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i, conv in enumerate(convs, start=1):
        parts[f"conv{i}"] = _conv(*conv)
        parts[f"norm{i}"] = layers.conv_norm(conv[1])
        if i < len(convs):
            parts[f"act{i}"] = layers.activation()
    shortcut: nn.Module | None = None
    if residual:
        shortcut = nn.Identity()
        if stride != 1 or before != after:
            shortcut = nn.Sequential(
                OrderedDict(conv=_conv(before, after, 1, stride), norm=layers.conv_norm(after))
            )
    return Residual(nn.Sequential(parts), shortcut, layers.activation())


def resnet(
    layers: Layers,
    image: Image,
    *,
    depth: int = 18,
    residual: bool = True,
    width: int | None = None,
    zero_init: bool = False,
    init: str = "kaiming",
) -> nn.Sequential:
    """Build a residual network: stem, stages that double channels and halve the image, logits.

    With four stages, from 64 pixels on the stem is the paper's, 7×7 with stride 2 and 3×3 max
    pooling with stride 2; below, it is one 3×3 convolution with stride 1 (as in the paper's CIFAR
    networks), since the other would leave an image of 28 pixels at 1×1. At 224 pixels, 3 channels
    and 1000 classes the networks have the published 11,689,512 (18), 21,797,672 (34), 25,557,032
    (50), 44,549,160 (101) and 60,192,808 (152) parameters. Convolutions have no bias, under
    ``norm="none"`` neither.

    Depths 20, 32, 44, 56 and 110 are the paper's for CIFAR: three stages of 16, 32 and 64 channels,
    the 3×3 stem at any size. Where the channels double, the shortcut is a 1×1 convolution as in the
    others; the paper has none there and fills up with zeros, so its networks have as many
    parameters as the plain ones here (0.27 M at 20, 0.85 M at 56), and ours 2,752 more.

    Args:
        depth: 18, 34, 50, 101 or 152; 20, 32, 44, 56 or 110.
        residual: False leaves out the shortcuts: the paper's plain networks.
        width: channels of the first stage, fewer is cheaper; None is the paper's 64 with four
            stages, 16 with three.
        zero_init: start the γ of each block's last normalizer at 0, so that a block begins as its
            shortcut (Goyal et al. 2017, arXiv 1706.02677 §5.1). Needs a normalizer with γ.
        init: see :func:`normkit.lab.models.parts.initialise`; "kaiming" with fan_out, as the
            weights behind the published counts were trained.
    """
    layers.conv_only(f"resnet{depth}")
    too_small(f"resnet{depth}", image.size, 16)
    blocks, bottleneck = _DEPTHS[depth]
    width = whole("width", (64 if len(blocks) == 4 else 16) if width is None else width)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    small = image.size < 64 or len(blocks) == 3
    parts["conv1"] = _conv(image.channels, width, 3 if small else 7, 1 if small else 2)
    parts["norm1"] = layers.conv_norm(width)
    parts["act1"] = layers.activation()
    if not small:
        parts["pool1"] = nn.MaxPool2d(3, 2, padding=1)
    before = width
    for i, count in enumerate(blocks):
        stage = []
        for j in range(count):
            stride = 2 if i and not j else 1
            stage.append(_block(layers, before, width << i, stride, bottleneck, residual))
            before = (width << i) * (4 if bottleneck else 1)
        parts[f"stage{i + 1}"] = nn.Sequential(*stage)
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["fc"] = nn.Linear(before, image.classes)
    model = nn.Sequential(parts)
    initialise(model, init, fan="fan_out")
    if zero_init:
        _zero_last_norms(model)
    return model


def _zero_last_norms(model: nn.Module) -> None:
    for block in model.modules():
        if isinstance(block, Residual):
            gamma = getattr(block.body[-1], "weight", None)
            if not isinstance(gamma, torch.Tensor):
                raise OptionError(
                    message(
                        "a γ in each block's last normalizer, for zero_init to set to 0",
                        f"{type(block.body[-1]).__name__} without γ",
                        "leave zero_init out, or use a normalizer with affine=True",
                    )
                )
            nn.init.zeros_(gamma)


def _at(depth: int) -> Maker:
    return functools.partial(resnet, depth=depth)


RESNETS: dict[str, Maker] = {f"resnet{depth}": _at(depth) for depth in _DEPTHS}
