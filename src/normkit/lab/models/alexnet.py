"""AlexNet: with dropout if it has no normalizer, without if it has one."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from normkit.errors import OptionError, message
from normkit.lab.models.layers import Layers
from normkit.lab.models.parts import Image, initialise, pooled, too_small, whole

__all__ = ["alexnet"]

# (channels in widths, kernel, padding, pooled afterwards) of convolutions 2 to 5.
_SMALL = ((3, 3, 1, True), (6, 3, 1, False), (4, 3, 1, False), (4, 3, 1, True))
_LARGE = ((3, 5, 2, True), (6, 3, 1, False), (4, 3, 1, False), (4, 3, 1, True))


def alexnet(
    layers: Layers,
    image: Image,
    *,
    dropout: float | None = None,
    dropout_at: str = "hidden",
    hidden: int = 4096,
    width: int = 64,
    init: str = "pytorch",
) -> nn.Sequential:
    """Build AlexNet with five convolutions and three dense layers, the one-tower version.

    From 64 pixels on it is the network of Krizhevsky 2014 (arXiv 1404.5997): first convolution
    11×11 with stride 4, 3×3 pooling with stride 2; 61,100,840 parameters at 224 pixels, 3 channels
    and 1000 classes. Smaller images would not outlast that: for them the first convolution is 3×3
    with stride 2, the second 3×3, and pooling is 2×2.

    Every convolution is followed by normalizer, activation and perhaps pooling, every hidden dense
    layer by normalizer and activation. Dropout stands before each hidden dense layer, as in the
    source, or before the output alone, where no normalizer follows it.

    Args:
        dropout: probability; None is 0.5 without a normalizer and 0 with one (Ioffe & Szegedy
            2015 §4.2.1 take dropout out). Give a number for any other combination.
        dropout_at: "hidden" or "output".
        hidden: width of the two hidden dense layers. 4096 is AlexNet's, and most of its cost.
        width: channels of the first convolution; the others have 3, 6, 4 and 4 times as many. 64
            is AlexNet's; a quarter of it takes about a fifth of the time on a CPU.
        init: see :func:`normkit.lab.models.parts.initialise`.
    """
    too_small("alexnet", image.size, 16)
    whole("hidden", hidden)
    whole("width", width)
    if dropout is None:
        dropout = 0.5 if layers.is_unnormalized else 0.0
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise OptionError(
            message("dropout at least 0 and below 1", repr(dropout), "use 0 for none")
        )
    if dropout_at not in ("hidden", "output"):
        raise OptionError(message("dropout_at 'hidden' or 'output'", repr(dropout_at), "use one"))
    small = image.size < 64
    kernel, stride, padding, pool = (3, 2, 1, 2) if small else (11, 4, 2, 3)

    parts: OrderedDict[str, nn.Module] = OrderedDict()
    side, before = image.size, image.channels
    first = (1, kernel, padding, True)
    for i, (widths, k, pad, pools) in enumerate((first, *(_SMALL if small else _LARGE)), 1):
        step, channels = stride if i == 1 else 1, widths * width
        parts[f"conv{i}"] = nn.Conv2d(before, channels, k, stride=step, padding=pad)
        parts[f"norm{i}"] = layers.conv_norm(channels)
        parts[f"act{i}"] = layers.activation()
        side = pooled(side, k, step, pad)
        if pools:
            parts[f"pool{i}"] = nn.MaxPool2d(pool, 2)
            side = pooled(side, pool, 2)
        before = channels
    parts["flatten"] = nn.Flatten()
    before *= side * side
    for i in (1, 2):
        if dropout and dropout_at == "hidden":
            parts[f"dropout{i}"] = nn.Dropout(dropout)
        parts[f"fc{i}"] = nn.Linear(before, hidden)
        parts[f"norm{i + 5}"] = layers.dense_norm(hidden)
        parts[f"act{i + 5}"] = layers.activation()
        before = hidden
    if dropout and dropout_at == "output":
        parts["dropout3"] = nn.Dropout(dropout)
    parts["fc3"] = nn.Linear(before, image.classes)
    model = nn.Sequential(parts)
    initialise(model, init)
    return model
