"""What people do to a model before a tool sees it."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

__all__ = [
    "Bounded",
    "bound_weight",
    "half_norm",
    "norm",
    "prune_weight",
    "reparametrize",
    "replace_forward",
    "scramble",
    "step",
    "tie",
    "to_inference",
]


class Bounded(nn.Module):
    """A parametrization."""

    def forward(self, w: Tensor) -> Tensor:
        return w.tanh() + 1


def norm(model: nn.Module, index: int) -> nn.Module:
    """Return the ``index``-th module that normalizes, counted round and round."""
    every = [m for m in model.modules() if "Norm" in type(m).__name__ or hasattr(m, "running_mean")]
    return every[index % len(every)] if every else nn.Identity()


def tie(model: nn.Module) -> None:
    """Let all batch normalizations of one width share γ and β."""
    first: dict[int, nn.Module] = {}
    for module in model.modules():
        plain = module._parameters.get("weight") is not None
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and plain:
            other = first.setdefault(module.weight.numel(), module)
            if module.weight.shape == other.weight.shape:
                module.weight, module.bias = other.weight, other.bias


def scramble(model: nn.Module) -> None:
    """Give every normalization layer γ, β and statistics of its own."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            for name, values in (*module._parameters.items(), *module._buffers.items()):
                if values is None or torch.nn.parameter.is_lazy(values):
                    continue
                noise = torch.rand(values.shape, generator=g)
                if name in ("running_mean", "mu"):
                    values.copy_(noise - 0.5)
                elif name in ("running_var", "v") or (name == "weight" and values.dim() == 1):
                    values.copy_(noise + 0.5)
                elif name == "bias":
                    values.copy_(noise - 0.5)


def prune_weight(module: nn.Module) -> None:
    """Prune γ, if there is one."""
    if isinstance(getattr(module, "weight", None), nn.Parameter):
        prune.l1_unstructured(module, "weight", 0.5)


def bound_weight(module: nn.Module) -> None:
    """Parametrize γ, if there is one."""
    if isinstance(getattr(module, "weight", None), nn.Parameter):
        parametrize.register_parametrization(module, "weight", Bounded())


def replace_forward(module: nn.Module) -> None:
    """Replace the forward of one layer, as libraries that wrap layers do."""
    cls = type(module)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return cls.forward(self, *args, **kwargs)

    module.forward = types.MethodType(forward, module)  # type: ignore[method-assign]


def half_norm(module: nn.Module) -> None:
    """Keep one layer in float32, as mixed-precision recipes do."""
    module.float()


def reparametrize(model: nn.Module, how: Any) -> None:
    """Parametrize the weight of the first convolution or linear layer."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            how(module)
            return


def to_inference(module: nn.Module) -> None:
    """Give a layer buffers made in inference mode, as a model loaded there has them."""
    with torch.inference_mode():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.clone()


def step(model: nn.Module) -> None:
    """Leave gradients behind, as a step does."""
    for p in model.parameters():
        p.grad = torch.ones_like(p)
