"""Forms of one network: as usually written, with fused layers, and the fastest.

The networks of this package keep normalizer and activation apart and change nothing in place, so
that a hook sees each value. Training for speed uses other forms. No form changes a
parameter, its name or, beyond rounding, a result.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from normkit.lab.models.parts import choice
from normkit.lab.models.pooling import HalvingMaxPool2d
from normkit.lab.models.registry import build
from normkit.lab.models.resnet import Residual

__all__ = ["FORMS", "as_written", "form", "fused", "quickest"]

FORMS = ("torch", "ours")


class _InPlaceResidual(Residual):
    """``y += shortcut(x)``, as in torchvision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        if self.shortcut is not None:
            y += self.shortcut(x)
        out: torch.Tensor = self.act(y)
        return out


class _FusedResidual(Residual):
    """The last normalizer adds the shortcut and applies the activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *before, last = self.body
        y = x
        for module in before:
            y = module(y)
        out: torch.Tensor = last(y, None if self.shortcut is None else self.shortcut(x))
        return out


def as_written(model: nn.Module) -> nn.Module:
    """Let activations and sums work in place; change ``model`` and return it."""
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    return _replaced(model, lambda block: _InPlaceResidual(block.body, block.shortcut, block.act))


def fused(model: nn.Module) -> nn.Module:
    """Fuse normkit's normalizers with the following ReLU and a block's shortcut.

    An activation that its normalizer has taken over becomes ``nn.Identity``, so names stay.
    Changes ``model`` and gives it back.

    >>> model = fused(build("lenet5"))
    >>> model.norm1.act, model.act1
    ('relu', Identity())
    """
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            names = list(module._modules)
            for name, following in itertools.pairwise(names):
                norm, act = module._modules[name], module._modules[following]
                if _takes_act(norm) and isinstance(act, nn.ReLU):
                    norm.act = "relu"  # type: ignore[assignment]
                    module._modules[following] = nn.Identity()
    return _replaced(model, _fused_block)


def quickest(model: nn.Module) -> nn.Module:
    """Convert to the form that trains fastest on a CPU with bitwise equal numbers.

    On top of :func:`fused`: a ReLU that still stands before a max pooling changes places with it,
    and has a quarter of the values to go through (the largest of them is the same one, and where
    several are, or none is above 0, the gradient goes the same way); and max pooling of 2×2 works
    by halves where no gradient is wanted (:class:`normkit.lab.models.pooling.HalvingMaxPool2d`).
    The two layers that change places change names, too; neither has parameters. Changes ``model``
    and gives it back.

    >>> model = quickest(build("lenet5", norm="none"))
    >>> model.act1, model.pool1
    (HalvingMaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False), ReLU())
    """
    for module in fused(model).modules():
        if isinstance(module, nn.Sequential):
            layers = module._modules
            for name, following in itertools.pairwise(list(layers)):
                if isinstance(layers[name], nn.ReLU) and isinstance(
                    layers[following], nn.MaxPool2d
                ):
                    layers[name], layers[following] = layers[following], layers[name]
            for name, layer in layers.items():
                if _in_pairs(layer):
                    layers[name] = HalvingMaxPool2d()
    return model


def _in_pairs(layer: nn.Module | None) -> bool:
    if type(layer) is not nn.MaxPool2d or layer.return_indices:
        return False
    return repr(layer) == repr(nn.MaxPool2d(2))


def _fused_block(block: Residual) -> Residual:
    last = block.body[-1]
    if not (_takes_act(last) and isinstance(block.act, nn.ReLU)):
        return block
    last.act = "relu"  # type: ignore[assignment]
    return _FusedResidual(block.body, block.shortcut, nn.Identity())


def _replaced(model: nn.Module, new: Callable[[Residual], Residual]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is Residual:
                setattr(parent, name, new(child))
    return model


def _takes_act(module: nn.Module | None) -> bool:
    return module is not None and getattr(module, "act", "none") is None


def form(name: str, layers: str, **options: Any) -> nn.Module:
    """Build network ``name`` with batch normalization by PyTorch ("torch") or normkit ("ours").

    Args:
        name: one of :data:`normkit.lab.models.MODELS`.
        layers: "torch" for :func:`as_written`, "ours" for :func:`fused`.
        options: for :func:`normkit.lab.models.build`.
    """
    if choice("layers", layers, FORMS) == "torch":
        return as_written(build(name, norm="torch-batch", **options))
    return fused(build(name, norm="batch", **options))
