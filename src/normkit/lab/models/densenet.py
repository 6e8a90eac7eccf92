"""DenseNet: every layer of a block receives the output of all layers before it.

Source: Huang et al. 2016, *Densely Connected Convolutional Networks*, arXiv 1608.06993, and the
d2l book for the small one.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from normkit.errors import OptionError, message
from normkit.lab.models.layers import Layers
from normkit.lab.models.parts import Image, initialise, too_small, whole

__all__ = ["DenseLayer", "densenet", "densenet121"]


class DenseLayer(nn.Module):
    """``[x, body(x)]``, concatenated along the channels.

    Args:
        body: normalizer, activation and convolution, in this order, once or twice.
    """

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, self.body(x)), dim=1)


def _conv(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    # No bias: a normalizer follows, and takes out whatever constant came before it.
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)


def _dense_layer(layers: Layers, before: int, growth: int, bottleneck: int) -> DenseLayer:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["norm1"] = layers.conv_norm(before)
    parts["act1"] = layers.activation()
    if bottleneck:
        middle = bottleneck * growth
        parts["conv1"] = _conv(before, middle, 1)
        parts["norm2"] = layers.conv_norm(middle)
        parts["act2"] = layers.activation()
        parts["conv2"] = _conv(middle, growth, 3)
    else:
        parts["conv1"] = _conv(before, growth, 3)
    return DenseLayer(nn.Sequential(parts))


def densenet(
    layers: Layers,
    image: Image,
    *,
    blocks: tuple[int, ...] = (4, 4, 4, 4),
    growth: int = 32,
    bottleneck: int = 0,
    stem: int = 64,
    init: str = "kaiming",
) -> nn.Sequential:
    """Build dense blocks, with transitions that halve the channels and the image.

    The default is the source's small one: 4 blocks of 4 layers, growth 32, no bottleneck. A layer
    is normalizer, activation, convolution, in this order. From 64 pixels on the stem is 7×7 with
    stride 2 and 3×3 max pooling with stride 2, below it one 3×3 convolution with stride 1 and
    nothing else. Convolutions have no bias (d2l's have one, without effect).

    Args:
        blocks: layers in each block.
        growth: channels each layer adds.
        bottleneck: channels, in multiples of growth, of a 1×1 convolution before each 3×3; 0 for
            none.
        stem: channels of the first convolution.
        init: see :func:`normkit.lab.models.parts.initialise`; "kaiming" with fan_in.
    """
    layers.conv_only("densenet")
    if not blocks:
        raise OptionError(message("at least one block", "none", "use e.g. blocks=(4, 4)"))
    for count in blocks:
        whole("every entry of blocks", count)
    whole("growth", growth)
    whole("bottleneck", bottleneck, least=0)
    whole("stem", stem)
    small = image.size < 64
    too_small(f"densenet of {len(blocks)} blocks", image.size, 2 ** len(blocks))
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv1"] = _conv(image.channels, stem, 3 if small else 7, 1 if small else 2)
    if not small:
        parts["norm1"] = layers.conv_norm(stem)
        parts["act1"] = layers.activation()
        parts["pool1"] = nn.MaxPool2d(3, 2, padding=1)
    channels = stem
    for i, count in enumerate(blocks, start=1):
        block = []
        for _ in range(count):
            block.append(_dense_layer(layers, channels, growth, bottleneck))
            channels += growth
        parts[f"block{i}"] = nn.Sequential(*block)
        if i < len(blocks):
            parts[f"transition{i}"] = nn.Sequential(
                OrderedDict(
                    norm=layers.conv_norm(channels),
                    act=layers.activation(),
                    conv=_conv(channels, channels // 2, 1),
                    pool=nn.AvgPool2d(2),
                )
            )
            channels //= 2
    parts["norm"] = layers.conv_norm(channels)
    parts["act"] = layers.activation()
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["fc"] = nn.Linear(channels, image.classes)
    model = nn.Sequential(parts)
    initialise(model, init)
    return model


def densenet121(layers: Layers, image: Image, *, init: str = "kaiming") -> nn.Sequential:
    """Build DenseNet-121: blocks of 6, 12, 24 and 16, growth 32, bottlenecks of 4 × growth.

    7,978,856 parameters at 224 pixels, 3 channels and 1000 classes, as published.
    """
    return densenet(layers, image, blocks=(6, 12, 24, 16), bottleneck=4, init=init)
