"""Both sides of a case: PyTorch's layers as usually written, and ours."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.bench.cases import GROUPS, Case

__all__ = ["MEASURES", "Inputs", "SeparateModules", "functions", "inputs", "sides"]

MEASURES = ("act", "alone", "residual")
"""Normalizer and ReLU; the normalizer alone; normalizer, sum with a residual and ReLU."""

Apply = Callable[[Tensor, Tensor | None], Tensor]


class _Permuted(nn.LayerNorm):
    """ConvNeXt's layer as in torchvision: permute channels to the end and back."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SeparateModules(nn.Module):
    """Normalizer, then a sum, then the activation; the sum in place."""

    def __init__(self, norm: nn.Module, act: nn.Module | None) -> None:
        super().__init__()
        self.norm = norm
        self.act = act

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y: Tensor = self.norm(x)
        if residual is not None:
            y += residual
        return y if self.act is None else self.act(y)


def sides(case: Case, measure: str) -> dict[str, nn.Module]:
    """Return PyTorch's layer for a case ("torch") and normkit's ("ours")."""
    act = "relu" if measure != "alone" else None
    theirs, ours = _layers(case, act)
    activation = None if act is None else nn.ReLU(inplace=True)
    return {"torch": SeparateModules(theirs, activation), "ours": ours}


def _layers(case: Case, act: str | None) -> tuple[nn.Module, nn.Module]:
    channels, rank = case.shape[1], len(case.shape)
    if case.norm == "bn":
        if rank == 2:
            return nn.BatchNorm1d(channels), nk.BatchNorm1d(channels, act=act)
        return nn.BatchNorm2d(channels), nk.BatchNorm2d(channels, act=act)
    if case.norm == "gn":
        return nn.GroupNorm(GROUPS, channels), nk.GroupNorm(GROUPS, channels, act=act)
    if case.norm == "in":
        return (
            nn.InstanceNorm2d(channels, affine=True),
            nk.InstanceNorm2d(channels, affine=True, act=act),
        )
    if case.norm == "rms":
        return nn.RMSNorm(channels), nk.RMSNorm(channels, act=act)
    if rank == 2:
        return nn.LayerNorm(channels), nk.LayerNorm(channels, act=act)
    return _Permuted(channels, eps=1e-6), nk.LayerNorm2d(channels, act=act)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Tensors of a case, allocated before timing starts."""

    x: Tensor
    dy: Tensor
    residual: Tensor | None
    copy_target: Tensor

    def copy(self) -> None:
        """Copy the input: the unit in which limits are expressed."""
        self.copy_target.copy_(self.x.detach())


def inputs(case: Case, *, seed: int, residual: bool = False) -> Inputs:
    """Return random tensors in the layout of the case, cached for its next measurement."""
    x, dy, copy_target = _tensors(case, seed)
    return Inputs(x, dy, dy.clone().requires_grad_() if residual else None, copy_target)


@functools.lru_cache(maxsize=1)
def _tensors(case: Case, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    format = torch.channels_last if case.layout == "channels-last" else torch.contiguous_format
    x, dy, copy_target = (torch.empty(case.shape, memory_format=format) for _ in range(3))
    x.normal_(generator=generator)
    dy.normal_(generator=generator)
    return x.requires_grad_(), dy, copy_target.zero_()


def functions(
    layers: dict[str, nn.Module], tensors: Inputs, *, training: bool
) -> dict[str, Callable[[], None]]:
    """Return the functions to time: forward and backward, or forward in evaluation mode."""
    return {
        name: (_train if training else _evaluate)(
            layer.train(training), tensors, list(layer.parameters())
        )
        for name, layer in layers.items()
    }


def _train(layer: nn.Module, tensors: Inputs, parameters: list[nn.Parameter]) -> Callable[[], None]:
    leaves = [tensors.x, *parameters] + ([] if tensors.residual is None else [tensors.residual])
    # Gradients are freed at once, as with set_to_none.
    if tensors.residual is None:
        return lambda: _drop(torch.autograd.grad(layer(tensors.x), leaves, tensors.dy))
    return lambda: _drop(
        torch.autograd.grad(layer(tensors.x, tensors.residual), leaves, tensors.dy)
    )


def _evaluate(layer: nn.Module, tensors: Inputs, _: list[nn.Parameter]) -> Callable[[], None]:
    x, residual = tensors.x.detach(), tensors.residual

    def run() -> None:
        with torch.no_grad():
            if residual is None:
                layer(x)
            else:
                layer(x, residual)

    return run


def _drop(_: object) -> None:
    pass
