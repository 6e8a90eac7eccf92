"""Which normalizer and which activation a network has, and where the normalizer goes.

The networks never name a normalizer. They ask for "whatever follows a convolution of 64 channels"
or "whatever follows a dense layer of 120", so that one network serves every arm of an experiment:
which normalizer, after which kind of layer, with γ and β or without.

No normalizer draws random numbers, so two arms built under the same seed start from the same
weights, and their difference is the normalizer's alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from math import isfinite
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import nn

from normkit.errors import OptionError, TypeMismatchError, message
from normkit.lab.models.parts import choice

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "NORM_OPTIONS",
    "NORM_POSITIONS",
    "Layers",
    "NormFactory",
    "NormPosition",
    "activation",
    "groups_for",
    "layers_for",
]

NormFactory = Callable[[int, int], nn.Module]
"""``norm(channels, rank)``: rank 0 for dense input (N, C), rank 2 for images (N, C, H, W)."""

NormPosition = Literal["all", "conv", "fc"]

NORM_POSITIONS: tuple[str, ...] = ("all", "conv", "fc")

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "leaky_relu_0.2": functools.partial(nn.LeakyReLU, 0.2),
}
ACTIVATIONS: tuple[str, ...] = tuple(_ACTIVATIONS)


def activation(name: str) -> nn.Module:
    """Return a new activation module, never in place: a hook before it keeps its values.

    >>> activation("gelu")
    GELU(approximate='none')
    """
    return _ACTIVATIONS[choice("act", name, ACTIVATIONS)]()


def groups_for(channels: int, rank: int) -> int:
    """Return GroupNorm's number of groups: the largest divisor of ``channels`` up to a limit.

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


def _started(layer: nn.Module, gamma: float, beta: float) -> nn.Module:
    """Set the initial γ and β of a layer. Draws no random number."""
    if (gamma, beta) != (1.0, 0.0):
        nn.init.constant_(cast("torch.Tensor", layer.weight), gamma)
        nn.init.constant_(cast("torch.Tensor", layer.bias), beta)
    return layer


def _batch(
    channels: int, rank: int, affine: bool, gamma: float = 1.0, beta: float = 0.0, **options: Any
) -> nn.Module:
    # Imported when asked for: a network with other normalizers needs none of the kernels.
    from normkit.nn import BatchNorm1d, BatchNorm2d

    kind = BatchNorm2d if rank else BatchNorm1d
    return _started(kind(channels, affine=affine, **options), gamma, beta)


def _ghost(channels: int, rank: int, affine: bool, **options: Any) -> nn.Module:
    from normkit.nn import GhostBatchNorm1d, GhostBatchNorm2d

    kind = GhostBatchNorm2d if rank else GhostBatchNorm1d
    return kind(channels, affine=affine, **options)


def _domain(channels: int, rank: int, affine: bool, **options: Any) -> nn.Module:
    from normkit.nn import DomainBatchNorm1d, DomainBatchNorm2d

    kind = DomainBatchNorm2d if rank else DomainBatchNorm1d
    return kind(channels, affine=affine, **options)


def _torch_batch(
    channels: int, rank: int, affine: bool, gamma: float = 1.0, beta: float = 0.0, **options: Any
) -> nn.Module:
    kind = nn.BatchNorm2d if rank else nn.BatchNorm1d
    return _started(kind(channels, affine=affine, **options), gamma, beta)


def _layer(channels: int, rank: int, affine: bool, **options: Any) -> nn.Module:
    # On images one group is layer normalization over (C, H, W) with γ and β per channel, which
    # needs no image size. On dense input the two are the same, and LayerNorm is its own name.
    if rank:
        return nn.GroupNorm(1, channels, affine=affine, **options)
    return nn.LayerNorm(channels, elementwise_affine=affine, **options)


def _group(channels: int, rank: int, affine: bool, **options: Any) -> nn.Module:
    return nn.GroupNorm(groups_for(channels, rank), channels, affine=affine, **options)


def _instance(channels: int, rank: int, affine: bool, **options: Any) -> nn.Module:
    # A dense feature has one value per sample and channel: less its own mean it is always 0.
    return nn.InstanceNorm2d(channels, affine=affine, **options) if rank else nn.Identity()


def _half_instance(channels: int, rank: int, affine: bool, **options: Any) -> nn.Module:
    from normkit.nn import HalfInstanceNorm2d

    return HalfInstanceNorm2d(channels, affine=affine, **options) if rank else nn.Identity()


_NORMS: dict[str, Callable[..., nn.Module]] = {
    "none": _none,
    "batch": _batch,
    "torch-batch": _torch_batch,
    "ghost": _ghost,
    "domain": _domain,
    "layer": _layer,
    "group": _group,
    "instance": _instance,
    "half-instance": _half_instance,
}
NORM_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "batch": ("momentum", "average", "eps", "gamma", "beta"),
    "torch-batch": ("momentum", "eps", "gamma", "beta"),
    "ghost": ("ghost_size", "momentum", "average", "eps"),
    "domain": ("domains", "share_affine", "momentum", "average", "eps"),
    "layer": ("eps",),
    "group": ("eps",),
    "instance": ("eps",),
    "half-instance": ("eps",),
}
"""The further arguments that a normalizer may be given; the first of ghost and domain must be.

``gamma`` and ``beta`` are the values that γ and β start at, 1 and 0 unless given, rounded to the
parameters' type: in float32 a γ of 1.0000001 is the next number after 1, 1 + 2⁻²³.
"""

_NEEDED = {"ghost": ("ghost_size", 32), "domain": ("domains", 2)}

NORMS: tuple[str, ...] = tuple(_NORMS)


@dataclasses.dataclass(frozen=True)
class Layers:
    """The normalizer and the activation of one network, and the normalizer's position.

    Attributes:
        norm: makes a normalizer from (channels, rank).
        act: an activation's name.
        norm_at: after convolutions ("conv"), after hidden dense layers ("fc"), or both ("all").
            The last dense layer, which gives the logits, never has one.
        plain: there is no normalizer at all (``norm="none"``).
    """

    norm: NormFactory
    act: str
    norm_at: NormPosition
    plain: bool

    def conv_norm(self, channels: int) -> nn.Module:
        """Return the module after a convolution (or, in DenseNet, before one)."""
        return self.norm(channels, 2) if self.norm_at in ("all", "conv") else nn.Identity()

    def dense_norm(self, channels: int) -> nn.Module:
        """Return the module after a hidden dense layer."""
        return self.norm(channels, 0) if self.norm_at in ("all", "fc") else nn.Identity()

    def activation(self) -> nn.Module:
        """Return a new activation."""
        return activation(self.act)

    def conv_only(self, model: str) -> None:
        """Raise for ``norm_at="fc"`` if the network's only dense layer gives the logits."""
        if self.norm_at == "fc":
            raise OptionError(
                message(
                    f"a network with a hidden dense layer, which {model} is not",
                    "norm_at='fc'",
                    "use norm_at='conv', or lenet5, convnet4, alexnet or cifar10-quick",
                )
            )


def layers_for(
    norm: str | NormFactory,
    act: str,
    norm_at: str,
    affine: bool,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Layers:
    """Check the options that every network shares, and combine them.

    Raises:
        OptionError: an unknown name; an option that the normalizer does not have, or lacks;
            a start for γ or β where ``affine=False`` leaves them out, or one that is not a finite
            number; ``affine=False`` or options with a factory, which decides itself.
        TypeMismatchError: ``affine`` is not a bool.
    """
    if not isinstance(affine, bool):
        raise TypeMismatchError(message("affine to be a bool", repr(affine), "use True or False"))
    choice("act", act, ACTIVATIONS)
    place = cast("NormPosition", choice("norm_at", norm_at, NORM_POSITIONS))
    if callable(norm):
        if not affine or options:
            raise OptionError(
                message(
                    "affine and options with a normalizer's name only",
                    f"affine={affine}, {dict(options)} with a factory",
                    "let the factory build its layers as needed",
                )
            )
        return Layers(norm, act, place, plain=False)
    make = _NORMS[choice("norm", norm, NORMS)]
    _check_options(norm, options)
    _check_start(affine, options)
    return Layers(
        lambda c, rank: make(c, rank, affine, **options), act, place, plain=norm == "none"
    )


def _check_options(norm: str, options: Mapping[str, Any]) -> None:
    allowed = NORM_OPTIONS[norm]
    unknown = [name for name in options if name not in allowed]
    needed, example = _NEEDED.get(norm, ("", 0))
    if unknown or (needed and needed not in options):
        raise OptionError(
            message(
                f"options among {', '.join(allowed) or '(none)'} for the normalizer {norm!r}"
                + (f", with {needed}" if needed else ""),
                ", ".join(unknown) or f"no {needed}",
                f"use only these, e.g. {needed or 'ghost_size'}={example or 32}",
            )
        )


def _check_start(affine: bool, options: Mapping[str, Any]) -> None:
    given = {name: options[name] for name in ("gamma", "beta") if name in options}
    if given and not affine:
        raise OptionError(
            message(
                "γ and β (affine=True) where their start is set",
                f"affine=False with {given}",
                "leave out either",
            )
        )
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            raise OptionError(
                message(f"a finite start for {name}", repr(value), f"use e.g. {name}=1.0")
            )
