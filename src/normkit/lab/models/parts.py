"""What every network here is made of: its normalizers, its activations, its first weights.

The networks never name a normalizer. They ask for "whatever follows a convolution of 64 channels"
or "whatever follows a dense layer of 120", so that one network serves every arm of an experiment:
which normalizer, after which kind of layer, with γ and β or without.

No normalizer draws random numbers, so two arms built under the same seed start from the same
weights, and their difference is the normalizer's alone.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Literal, cast

from torch import nn

from normkit.errors import OptionError, TypeMismatchError, explain

__all__ = [
    "ACTIVATIONS",
    "INITS",
    "NORMS",
    "PLACES",
    "Image",
    "Layers",
    "Maker",
    "NormFactory",
    "Place",
    "activation",
    "choice",
    "groups_for",
    "initialise",
    "layers_for",
    "pooled",
    "too_small",
    "whole",
]

NormFactory = Callable[[int, int], nn.Module]
"""``norm(channels, rank)``: rank 0 for dense input (N, C), rank 2 for images (N, C, H, W)."""

Place = Literal["all", "conv", "fc"]

PLACES: tuple[str, ...] = ("all", "conv", "fc")
INITS: tuple[str, ...] = ("pytorch", "xavier", "kaiming")

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
}
ACTIVATIONS: tuple[str, ...] = tuple(_ACTIVATIONS)


def choice(what: str, came: object, allowed: tuple[str, ...]) -> str:
    """Check that ``came`` is one of ``allowed`` and give it back.

    Raises:
        OptionError: it is not; the message lists those that are.

    >>> choice("act", "relu", ("relu", "gelu"))
    'relu'
    """
    if isinstance(came, str) and came in allowed:
        return came
    raise OptionError(
        explain(f"{what} must be one of {', '.join(allowed)}", repr(came), "use one of those")
    )


def whole(what: str, came: object, least: int = 1) -> int:
    """Check that ``came`` is a whole number of at least ``least`` and give it back.

    Raises:
        TypeMismatchError: not an int (True and 28.0 are not).
        OptionError: below ``least``.

    >>> whole("size", 28)
    28
    """
    if not isinstance(came, int) or isinstance(came, bool):
        raise TypeMismatchError(
            explain(f"{what} must be an int", f"{came!r} ({type(came).__name__})", "pass an int")
        )
    if came < least:
        raise OptionError(
            explain(f"{what} must be at least {least}", str(came), f"use {least} or more")
        )
    return came


def activation(name: str) -> nn.Module:
    """A new activation module. Never in place: what a hook saw before it must stay as it was.

    >>> activation("gelu")
    GELU(approximate='none')
    """
    return _ACTIVATIONS[choice("act", name, ACTIVATIONS)]()


def groups_for(channels: int, rank: int) -> int:
    """How many groups GroupNorm gets: the largest divisor of ``channels`` up to a limit.

    The limit is 32 groups (Wu & He 2018, arXiv 1803.08494, their default), and for images at
    least 2 channels a group, because with one GroupNorm would be InstanceNorm. Dense input has one
    value a channel, and a group of two would always give ±1, so there a group has at least 16
    channels (their other setting).

    >>> groups_for(64, 2), groups_for(16, 2), groups_for(6, 2), groups_for(1, 2)
    (32, 8, 3, 1)
    >>> groups_for(120, 0), groups_for(84, 0), groups_for(10, 0)
    (6, 4, 1)
    """
    limit = max(1, min(32, channels // (2 if rank else 16)))
    return next(g for g in range(limit, 0, -1) if channels % g == 0)


def _none(channels: int, rank: int, affine: bool) -> nn.Module:
    return nn.Identity()


def _batch(channels: int, rank: int, affine: bool) -> nn.Module:
    # Looked up when asked for: a network with other normalizers needs none of the kernels.
    ours = importlib.import_module("normkit.nn")
    name = "BatchNorm2d" if rank else "BatchNorm1d"
    return cast("nn.Module", getattr(ours, name)(channels, affine=affine))


def _torch_batch(channels: int, rank: int, affine: bool) -> nn.Module:
    kind = nn.BatchNorm2d if rank else nn.BatchNorm1d
    return kind(channels, affine=affine)


def _layer(channels: int, rank: int, affine: bool) -> nn.Module:
    # On images one group is layer normalization over (C, H, W) with γ and β per channel, which
    # needs no image size. On dense input the two are the same, and LayerNorm is its own name.
    if rank:
        return nn.GroupNorm(1, channels, affine=affine)
    return nn.LayerNorm(channels, elementwise_affine=affine)


def _group(channels: int, rank: int, affine: bool) -> nn.Module:
    return nn.GroupNorm(groups_for(channels, rank), channels, affine=affine)


def _instance(channels: int, rank: int, affine: bool) -> nn.Module:
    # A dense feature has one value per sample and channel: less its own mean it is always 0.
    return nn.InstanceNorm2d(channels, affine=affine) if rank else nn.Identity()


_NORMS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "none": _none,
    "batch": _batch,
    "torch-batch": _torch_batch,
    "layer": _layer,
    "group": _group,
    "instance": _instance,
}
NORMS: tuple[str, ...] = tuple(_NORMS)


@dataclasses.dataclass(frozen=True)
class Image:
    """What goes in and what comes out: (N, channels, size, size) in, (N, classes) out."""

    channels: int
    size: int
    classes: int


@dataclasses.dataclass(frozen=True)
class Layers:
    """The normalizer and the activation of one network, and where the normalizer goes.

    Attributes:
        norm: makes a normalizer from (channels, rank).
        act: an activation's name.
        norm_at: after convolutions ("conv"), after hidden dense layers ("fc"), or both ("all").
            The last dense layer, which gives the logits, never has one.
        plain: there is no normalizer at all (``norm="none"``).
    """

    norm: NormFactory
    act: str
    norm_at: Place
    plain: bool

    def conv_norm(self, channels: int) -> nn.Module:
        """What follows a convolution (or, before one, precedes it in DenseNet)."""
        return self.norm(channels, 2) if self.norm_at in ("all", "conv") else nn.Identity()

    def dense_norm(self, channels: int) -> nn.Module:
        """What follows a hidden dense layer."""
        return self.norm(channels, 0) if self.norm_at in ("all", "fc") else nn.Identity()

    def activation(self) -> nn.Module:
        """A new activation."""
        return activation(self.act)

    def conv_only(self, model: str) -> None:
        """Refuse ``norm_at="fc"`` for a network whose only dense layer gives the logits."""
        if self.norm_at == "fc":
            raise OptionError(
                explain(
                    f"{model} has no hidden dense layer to normalise",
                    "norm_at='fc'",
                    "use norm_at='conv', or lenet5, convnet4, alexnet or cifar10-quick",
                )
            )


def layers_for(norm: str | NormFactory, act: str, norm_at: str, affine: bool) -> Layers:
    """Check the choices that every network shares and put them together.

    Raises:
        OptionError: an unknown name, or ``affine=False`` with a factory, which decides itself.
        TypeMismatchError: ``affine`` is not a bool.
    """
    if not isinstance(affine, bool):
        raise TypeMismatchError(explain("affine must be a bool", repr(affine), "use True or False"))
    choice("act", act, ACTIVATIONS)
    place = cast("Place", choice("norm_at", norm_at, PLACES))
    if callable(norm):
        if not affine:
            raise OptionError(
                explain(
                    "affine belongs to the normalizers named here",
                    "affine=False with a factory",
                    "let the factory build its layers without γ and β",
                )
            )
        return Layers(norm, act, place, plain=False)
    make = _NORMS[choice("norm", norm, NORMS)]
    return Layers(lambda c, rank: make(c, rank, affine), act, place, plain=norm == "none")


def pooled(size: int, kernel: int, stride: int = 1, padding: int = 0, *, ceil: bool = False) -> int:
    """Side of what a convolution or pooling leaves of a side of ``size``.

    >>> pooled(28, 5, padding=2), pooled(28, 2, 2), pooled(32, 3, 2, ceil=True)
    (28, 14, 16)
    """
    span = size + 2 * padding - kernel
    return (-(-span // stride) if ceil else span // stride) + 1


def initialise(
    model: nn.Module, init: str, *, fan: Literal["fan_in", "fan_out"] = "fan_in"
) -> None:
    """Draw the first weights of all convolutions and dense layers, in the order of the modules.

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
    """Refuse an image so small that nothing would be left of it.

    Raises:
        OptionError: ``size`` is below ``least``.
    """
    if size < least:
        raise OptionError(
            explain(
                f"{model} needs images of at least {least}×{least} pixels",
                f"size={size}",
                f"use size={least} or more, or a network with fewer reductions",
            )
        )


Maker = Callable[..., nn.Module]
"""``maker(layers, image, **options)``; its keyword-only arguments are the options."""
