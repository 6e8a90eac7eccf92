"""The normalizer and the activation of a network, and the normalizer's position.

The networks never name a normalizer. They ask for "whatever follows a convolution of 64 channels"
or "whatever follows a dense layer of 120", so that one network serves every arm of an experiment:
which normalizer, after which kind of layer, with γ and β or without.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, cast

from torch import nn

from normkit.errors import OptionError, TypeMismatchError, message
from normkit.lab.models.normalizers import NormFactory, factory
from normkit.lab.models.parts import choice

__all__ = ["ACTIVATIONS", "NORM_POSITIONS", "Layers", "NormPosition", "activation", "layers_for"]

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


@dataclasses.dataclass(frozen=True)
class Layers:
    """The normalizer and the activation of one network, and the normalizer's position.

    Attributes:
        norm: makes a normalizer from (channels, rank).
        act: an activation's name.
        norm_at: after convolutions ("conv"), after hidden dense layers ("fc"), or both ("all").
            The last dense layer, which gives the logits, never has one.
        is_unnormalized: there is no normalizer at all (``norm="none"``).
    """

    norm: NormFactory
    act: str
    norm_at: NormPosition
    is_unnormalized: bool

    def conv_norm(self, channels: int) -> nn.Module:
        """Return the module after a convolution (or, in DenseNet, before one)."""
        return self.norm(channels, 2) if self.norm_at in ("all", "conv") else nn.Identity()

    def dense_norm(self, channels: int) -> nn.Module:
        """Return the module after a hidden dense layer."""
        return self.norm(channels, 0) if self.norm_at in ("all", "fc") else nn.Identity()

    def token_norm(self, channels: int) -> nn.Module:
        """Return a normalizer of a transformer's tokens (N, T, channels)."""
        return self.norm(channels, 1)

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
    position = cast("NormPosition", choice("norm_at", norm_at, NORM_POSITIONS))
    if callable(norm):
        if not affine or options:
            raise OptionError(
                message(
                    "affine and options with a normalizer's name only",
                    f"affine={affine}, {dict(options)} with a factory",
                    "let the factory build its layers as needed",
                )
            )
        return Layers(norm, act, position, is_unnormalized=False)
    return Layers(factory(norm, affine, options), act, position, is_unnormalized=norm == "none")
