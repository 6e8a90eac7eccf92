"""LeNet-5, and a network of four convolutions derived from it.

Both are plain sequences with named layers, so ``model.conv1`` is the first convolution and
``model.norm1`` whatever follows it (``nn.Identity`` where nothing does).
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from normkit.lab.models.layers import Layers
from normkit.lab.models.parts import Image, choice, initialise, pooled, too_small, whole

__all__ = ["convnet4", "lenet5"]

_POOLS = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}


def lenet5(
    layers: Layers,
    image: Image,
    *,
    padding: int | None = None,
    pool: str = "max",
    init: str = "pytorch",
) -> nn.Sequential:
    """Build LeNet-5: 5×5 convolutions of 6 and 16 channels, then dense layers of 120 and 84.

    Each convolution and each hidden dense layer is followed by normalizer and activation, each
    activation of a convolution by 2×2 pooling. LeCun et al. 1998 pool by averages and use tanh;
    the version here is today's, with max pooling and ReLU. The textbook of claim C24 is
    ``padding=0, pool="avg", init="xavier"`` with ``act="sigmoid"``.

    Convolutions keep their bias under every normalizer, so that all arms have the same weights.

    Args:
        padding: of the first convolution; None is 2 for 28×28 images, which makes of them the
            32×32 that LeNet-5 was drawn for, and 0 for all others.
        pool: "max" or "avg".
        init: see :func:`normkit.lab.models.parts.initialise`.
    """
    choice("pool", pool, tuple(_POOLS))
    if padding is None:
        padding = 2 if image.size == 28 else 0
    whole("padding", padding, least=0)
    # Both convolutions take 4 off, both poolings halve: 14 leaves 2×2 before the last pooling.
    too_small(f"lenet5 with padding={padding}", image.size, 16 - 2 * padding)
    side = pooled(pooled(image.size, 5, padding=padding) // 2, 5) // 2
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(image.channels, 6, 5, padding=padding),
            norm1=layers.conv_norm(6),
            act1=layers.activation(),
            pool1=_POOLS[pool](2),
            conv2=nn.Conv2d(6, 16, 5),
            norm2=layers.conv_norm(16),
            act2=layers.activation(),
            pool2=_POOLS[pool](2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * side * side, 120),
            norm3=layers.dense_norm(120),
            act3=layers.activation(),
            fc2=nn.Linear(120, 84),
            norm4=layers.dense_norm(84),
            act4=layers.activation(),
            fc3=nn.Linear(84, image.classes),
        )
    )
    initialise(model, init)
    return model


def convnet4(layers: Layers, image: Image, *, init: str = "pytorch") -> nn.Sequential:
    """Build four convolutions in LeNet-5's manner, to observe the inputs of each layer.

    Channels 6, 16, 32 and 64, all 5×5 with padding 2, so the image keeps its size but for 2×2 max
    pooling after the first, second and fourth; then LeNet-5's dense layers. The widths are chosen
    here. The four convolutions are ``model.conv1`` to ``model.conv4``, their normalizers
    ``model.norm1`` to ``model.norm4``.

    Args:
        init: see :func:`normkit.lab.models.parts.initialise`.
    """
    too_small("convnet4", image.size, 8)
    side = image.size // 2 // 2 // 2
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    before = image.channels
    for i, channels in enumerate((6, 16, 32, 64), start=1):
        parts[f"conv{i}"] = nn.Conv2d(before, channels, 5, padding=2)
        parts[f"norm{i}"] = layers.conv_norm(channels)
        parts[f"act{i}"] = layers.activation()
        if i != 3:
            parts[f"pool{i}"] = nn.MaxPool2d(2)
        before = channels
    parts["flatten"] = nn.Flatten()
    before = 64 * side * side
    for i, units in enumerate((120, 84), start=1):
        parts[f"fc{i}"] = nn.Linear(before, units)
        parts[f"norm{i + 4}"] = layers.dense_norm(units)
        parts[f"act{i + 4}"] = layers.activation()
        before = units
    parts["fc3"] = nn.Linear(before, image.classes)
    model = nn.Sequential(parts)
    initialise(model, init)
    return model
