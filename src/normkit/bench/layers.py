"""Both sides of a case: PyTorch's layers as networks write them, and ours."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.bench.cases import GROUPS, Case

__all__ = ["MEASURES", "Inputs", "functions", "inputs", "sides"]

MEASURES = ("act", "alone", "residual")
"""Normalizer and ReLU; the normalizer alone; normalizer, sum with a residual and ReLU."""

Apply = Callable[[Tensor, Tensor | None], Tensor]


class _Permuted(nn.LayerNorm):
    """ConvNeXt's layer as torchvision writes it: channels moved last and back."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Written(nn.Module):
    """The normalizer, then a sum, then the activation: three modules, the last two in place."""

    def __init__(self, norm: nn.Module, act: bool) -> None:
        super().__init__()
        self.norm = norm
        self.act = nn.ReLU(inplace=True) if act else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y: Tensor = self.norm(x)
        if residual is not None:
            y += residual
        return y if self.act is None else self.act(y)


def sides(case: Case, measure: str) -> dict[str, nn.Module]:
    """The layer of a case as PyTorch has it ("torch") and as normkit has it ("ours")."""
    act = "relu" if measure != "alone" else None
    theirs, ours = _layers(case, act)
    return {"torch": Written(theirs, act is not None), "ours": ours}


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
    """The tensors of a case, made before anything is timed."""

    x: Tensor
    dy: Tensor
    residual: Tensor | None
    room: Tensor  # where copies go

    def copy(self) -> None:
        """Copy the input: the unit of the limit."""
        self.room.copy_(self.x.detach())


def inputs(case: Case, *, seed: int, residual: bool = False) -> Inputs:
    """New random tensors, all in the layout of the case; kept for the next measurement of it."""
    x, dy, room = _tensors(case, seed)
    return Inputs(x, dy, dy.clone().requires_grad_() if residual else None, room)


@functools.lru_cache(maxsize=1)
def _tensors(case: Case, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    format = torch.channels_last if case.layout == "channels-last" else torch.contiguous_format
    x, dy, room = (torch.empty(case.shape, memory_format=format) for _ in range(3))
    x.normal_(generator=generator)
    dy.normal_(generator=generator)
    return x.requires_grad_(), dy, room.zero_()


def functions(
    layers: dict[str, nn.Module], given: Inputs, *, training: bool
) -> dict[str, Callable[[], None]]:
    """What is timed: forward and backward, or forward alone in evaluation mode."""
    return {
        name: (_train if training else _evaluate)(
            layer.train(training), given, list(layer.parameters())
        )
        for name, layer in layers.items()
    }


def _train(layer: nn.Module, given: Inputs, parameters: list[nn.Parameter]) -> Callable[[], None]:
    wanted = [given.x, *parameters] + ([] if given.residual is None else [given.residual])
    # Gradients go where autograd puts them and are dropped, as after set_to_none.
    if given.residual is None:
        return lambda: _drop(torch.autograd.grad(layer(given.x), wanted, given.dy))
    return lambda: _drop(torch.autograd.grad(layer(given.x, given.residual), wanted, given.dy))


def _evaluate(layer: nn.Module, given: Inputs, _: list[nn.Parameter]) -> Callable[[], None]:
    x, residual = given.x.detach(), given.residual

    def run() -> None:
        with torch.no_grad():
            if residual is None:
                layer(x)
            else:
                layer(x, residual)

    return run


def _drop(_: object) -> None:
    pass
