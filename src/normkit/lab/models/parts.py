"""Functions shared by all networks: checks, sizes, initial weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from torch import nn

from normkit.errors import OptionError, message
from normkit.lab.checks import choice, whole

__all__ = [
    "INITS",
    "Image",
    "Maker",
    "choice",
    "initialise",
    "pooled",
    "too_small",
    "whole",
]

Maker = Callable[..., nn.Module]
"""``maker(layers, image, **options)``; its keyword-only arguments are the options."""

INITS: tuple[str, ...] = ("pytorch", "xavier", "kaiming")


@dataclasses.dataclass(frozen=True)
class Image:
    """Input and output shapes: (N, channels, size, size) in, (N, classes) out."""

    channels: int
    size: int
    classes: int


def pooled(size: int, kernel: int, stride: int = 1, padding: int = 0, *, ceil: bool = False) -> int:
    """Return the side that a convolution or pooling leaves of a side of ``size``.

    >>> pooled(28, 5, padding=2), pooled(28, 2, 2), pooled(32, 3, 2, ceil=True)
    (28, 14, 16)
    """
    span = size + 2 * padding - kernel
    return (-(-span // stride) if ceil else span // stride) + 1


def initialise(
    model: nn.Module, init: str, *, fan: Literal["fan_in", "fan_out"] = "fan_in"
) -> None:
    """Draw the initial weights of all convolutions and dense layers, in module order.

    Transposed convolutions keep what they draw themselves.

    - ``"pytorch"``: as the layers draw them themselves, uniform within ±1/√fan_in.
    - ``"xavier"``: uniform within ±√(6/(fan_in + fan_out)) (Glorot & Bengio 2010); biases as
      PyTorch draws them, as in the d2l book.
    - ``"kaiming"``: normal with deviation √(2/fan) (He et al. 2015, arXiv 1502.01852); biases 0.

    Normalizers keep γ = 1 and β = 0.
    """
    if choice("init", init, INITS) == "pytorch":
        return
    for module in model.modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        if init == "xavier":
            nn.init.xavier_uniform_(module.weight)
        else:
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def too_small(model: str, size: int, least: int) -> None:
    """Raise if an image is so small that the reductions leave nothing of it.

    Raises:
        OptionError: ``size`` is below ``least``.
    """
    if size < least:
        raise OptionError(
            message(
                f"images of at least {least}×{least} pixels for {model}",
                f"size={size}",
                f"use size={least} or more, or a network with fewer reductions",
            )
        )
