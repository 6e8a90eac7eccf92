"""Networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from normkit.errors import OptionError, message
from normkit.lab.models.alexnet import alexnet
from normkit.lab.models.cifar10_quick import cifar10_quick
from normkit.lab.models.denoiser import denoiser
from normkit.lab.models.densenet import densenet, densenet121
from normkit.lab.models.layers import layers_for
from normkit.lab.models.lenet import convnet4, lenet5
from normkit.lab.models.normalizers import NormFactory
from normkit.lab.models.parts import Image, Maker, choice, whole
from normkit.lab.models.resnet import RESNETS
from normkit.lab.models.vit import vit

__all__ = ["MODELS", "OUTPUTS", "TITLES", "build"]

_CLASSIFIERS: dict[str, Maker] = {
    "lenet5": lenet5,
    "convnet4": convnet4,
    "alexnet": alexnet,
    "cifar10-quick": cifar10_quick,
    **RESNETS,
    "densenet": densenet,
    "densenet121": densenet121,
    "vit": vit,
}
_RESTORERS: dict[str, Maker] = {"denoiser": denoiser}
_MAKERS = _CLASSIFIERS | _RESTORERS
MODELS: tuple[str, ...] = tuple(_MAKERS)
"""The names that :func:`build` knows."""

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "lenet5": "LeNet-5",
        "convnet4": "four-layer CNN",
        "vit": "transformer on patches",
        "alexnet": "AlexNet",
        "cifar10-quick": "CIFAR-10 quick",
        **{name: name.replace("resnet", "ResNet-") for name in RESNETS},
        "densenet": "DenseNet",
        "densenet121": "DenseNet-121",
        "denoiser": "denoising CNN",
    }
)
"""Their names for people."""

OUTPUTS: Mapping[str, Literal["logits", "images"]] = MappingProxyType(
    {name: "images" if name in _RESTORERS else "logits" for name in MODELS}
)
"""What comes out of each: logits (N, classes), or images of the shape of those that go in."""


def _options(maker: Maker) -> tuple[str, ...]:
    # A depth that is part of the name ("resnet34") is no option any more.
    bound = getattr(maker, "keywords", {})
    return tuple(
        name
        for name, parameter in inspect.signature(maker).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in bound
    )


def build(
    name: str,
    *,
    norm: str | NormFactory = "batch",
    act: str = "relu",
    in_channels: int = 1,
    classes: int = 10,
    size: int = 28,
    norm_at: str = "all",
    affine: bool = True,
    norm_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network: images (N, in_channels, size, size) to logits (N, classes), or to images.

    In every network the normalizer and the activation are modules of their own, one after the
    other, named ``norm…`` and ``act…``. Under the same ``torch.manual_seed`` all choices of
    ``norm``, ``norm_at`` and ``affine`` start from the same weights.

    Args:
        name: one of :data:`MODELS`.
        norm: "none", "batch" (normkit's BatchNorm), "torch-batch" (PyTorch's), "layer" (over
            channels and space), "group" (with as many groups as
            :func:`~normkit.lab.models.normalizers.groups_for` returns), "instance" (after
            convolutions only: a dense feature is alone in its channel), "half-instance" (the same
            on half of the channels), "ghost" (normkit's GhostBatchNorm, with ``ghost_size`` among
            its options), "noisy-batch" (normkit's BatchNorm, then
            :class:`~normkit.lab.models.noise.ShiftingNoise`), "noise" (that noise alone), "dyt" and
            "derf" (the functions of :mod:`~normkit.lab.models.pointwise`), or a factory called as
            ``norm(channels, rank)``, rank 0 for dense input, 1 for tokens (N, T, C) and 2 for
            images.
        act: "relu", "sigmoid", "tanh", "silu", "gelu", "leaky_relu" or "leaky_relu_0.2" (with
            that slope below zero, where the other has 0.01).
        in_channels: channels of the images.
        classes: how many logits; without a meaning where :data:`OUTPUTS` says images.
        size: side of the images, in pixels.
        norm_at: normalise after convolutions ("conv"), after hidden dense layers ("fc") or after
            both ("all").
        affine: False leaves out the normalizers' γ and β.
        norm_options: further arguments of the normalizers named above:
            :data:`~normkit.lab.models.normalizers.NORM_OPTIONS` lists those that each takes.
        options: the network's own, listed in its docstring: ``padding`` and ``pool`` for lenet5,
            ``dropout``, ``hidden`` and ``width`` for alexnet, ``residual``, ``width`` and
            ``zero_init`` for the ResNets, ``blocks``, ``growth``, ``bottleneck`` and ``stem`` for
            densenet, ``width`` and ``depth`` for denoiser, ``patch``, ``dim``, ``depth`` and
            ``heads`` for vit, and ``init`` for all.

    Returns:
        The network in training mode, on the CPU, in the default float type.

    Raises:
        OptionError: an unknown name, normalizer, activation, place or option; an image too small
            for the network.
        TypeMismatchError: a number that is not an int, ``affine`` not a bool.

    >>> import torch
    >>> model = build("lenet5", norm="torch-batch")
    >>> model(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    >>> type(model.norm1).__name__, type(model.norm3).__name__
    ('BatchNorm2d', 'BatchNorm1d')
    """
    maker = _MAKERS[choice("the network's name", name, MODELS)]
    layers = layers_for(norm, act, norm_at, affine, norm_options or {})
    image = Image(whole("in_channels", in_channels), whole("size", size), whole("classes", classes))
    allowed = _options(maker)
    unknown = [option for option in options if option not in allowed]
    if unknown:
        raise OptionError(
            message(
                f"options among {', '.join(allowed)} for {name}",
                ", ".join(unknown),
                "leave it out, or correct its spelling",
            )
        )
    return maker(layers, image, **options)
