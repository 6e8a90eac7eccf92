"""Which layers remember moments, and how: all that the other files here know of a layer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.optim.swa_utils import AveragedModel

from normkit.errors import StatisticsError, TypeMismatchError, explain
from normkit.handle import Left
from normkit.nn.domainbatchnorm import Domains
from normkit.nn.held import Held, is_constant, remembers

__all__ = ["Memory", "Place", "find", "memory_of", "named_moments", "unwrapped"]


def _as_it_is(layer: Any, x: Tensor) -> Tensor:
    return x


def _no_bank(layer: Any) -> int | None:
    return None


@dataclasses.dataclass(frozen=True)
class Memory:
    """How a layer remembers moments.

    In evaluation mode the layer normalizes with two of its tensors, a mean and a variance per
    channel, in whatever way it likes.

    Args:
        mean: name of the layer's tensor of means, (C,), or (banks, C).
        var: name of its tensor of variances, of the same shape.
        per: "batch": moments of all values of a channel, as batch normalization remembers them;
            "sample": averages over samples of each sample's own moments, as instance
            normalization does.
        values: from the layer and what it is given to the values it takes moments of,
            (N, C, \\*). For layers that keep channels elsewhere.
        bank: from the layer to the row of its tensors that this call uses; None where they have
            no rows.
    """

    mean: str = "running_mean"
    var: str = "running_var"
    per: Literal["batch", "sample"] = "batch"
    values: Callable[[Any, Tensor], Tensor] = _as_it_is
    bank: Callable[[Any], int | None] = _no_bank


@functools.singledispatch
def memory_of(layer: nn.Module) -> Memory | None:
    """How ``layer`` remembers moments, or None where it remembers none.

    A generic function (:func:`functools.singledispatch`), so that a layer of a third party joins
    with three lines; its subclasses join with it.

    >>> class ChannelsLastNorm(nn.Module):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self.register_buffer("mu", torch.zeros(channels))
    ...         self.register_buffer("v", torch.ones(channels))
    ...     def forward(self, x):     # (N, H, W, C)
    ...         return (x - self.mu) / self.v.sqrt()
    >>> @memory_of.register(ChannelsLastNorm)
    ... def _(layer):
    ...     return Memory("mu", "v", values=lambda layer, x: x.movedim(-1, 1))
    >>> memory_of(ChannelsLastNorm(3)).mean
    'mu'
    """
    return None


@memory_of.register
def _(layer: _BatchNorm) -> Memory | None:
    if layer.running_mean is None or layer.running_var is None:
        return None
    return Memory()


def _with_batch_axis(layer: Any, x: Tensor) -> Tensor:
    return x.unsqueeze(0) if x.dim() == layer._get_no_batch_dim() else x


@memory_of.register
def _(layer: _InstanceNorm) -> Memory | None:
    if not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        return None
    return Memory(per="sample", values=_with_batch_axis)


@memory_of.register
def _(layer: Domains) -> Memory | None:
    return None if layer.running_mean is None else Memory(bank=Domains.chosen)


class Place(NamedTuple):
    """A layer that remembers, by its first name in the model."""

    name: str
    layer: nn.Module
    memory: Memory

    @property
    def eps(self) -> float:
        """What the layer adds to a variance before it divides."""
        return float(getattr(self.layer, "eps", None) or 0.0)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The layer's own mean and variance."""
        return getattr(self.layer, self.memory.mean), getattr(self.layer, self.memory.var)

    @property
    def banks(self) -> list[tuple[str, int | None]]:
        """Each set of moments that the layer keeps: its name, and its row."""
        mean, _ = self.tensors
        if mean.dim() < 2:
            return [(self.name, None)]
        return [(f"{self.name}[{row}]", row) for row in range(len(mean))]

    def remembered(self, row: int | None) -> tuple[Tensor, Tensor]:
        """Mean and variance of a row, in float64 on the CPU."""
        mean, variance = (t.detach() if row is None else t.detach()[row] for t in self.tensors)
        return mean.double().cpu(), variance.double().cpu()


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that a parallel, compiled or averaging wrapper holds.

    The wrapper's own forward would broadcast buffers between processes that see different
    numbers of batches, or run a graph that was compiled without looking, or hide which entries
    of a mapping the model wants.

    Raises:
        TypeMismatchError: ``model`` is no module, or scripted.

    >>> layer = nn.BatchNorm1d(2)
    >>> unwrapped(nn.DataParallel(layer)) is layer
    True
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeMismatchError(
            explain(
                "statistics are taken in a model's layers, so it is an nn.Module, and not scripted",
                f"a {type(model).__name__}",
                "pass the model itself, before torch.jit.script",
            )
        )
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def find(model: nn.Module) -> tuple[list[Place], list[Left]]:
    """The layers of ``model`` whose moments may be written, and those that are left, and why.

    Raises:
        StatisticsError: a layer is still waiting for its first input, or there is none to write.
    """
    places: list[Place] = []
    left: list[Left] = []
    for name, layer in model.named_modules():
        memory = memory_of(layer)
        if memory is None:
            # A layer that looks like one of ours and is none: its user would want to know.
            if is_constant(layer):
                left.append(Left(name, type(layer), "constant by its make"))
            elif remembers(layer):
                scripted = isinstance(layer, torch.jit.ScriptModule)
                why = "scripted" if scripted else "unknown; memory_of.register makes it known"
                left.append(Left(name, type(layer), why))
            continue
        if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():  # type: ignore[misc]
            raise StatisticsError(
                explain(
                    "a lazy layer learns its number of channels from its first input",
                    f"{name or type(layer).__name__}, which has had none",
                    "run the model once on any batch",
                )
            )
        held = _held(layer, model)
        if held is None:
            places.append(Place(name, layer, memory))
        else:
            left.append(Left(name, type(layer), held))
    if not places:
        shown = "; ".join(f"{row.name or 'the model'}: {row.why}" for row in left[:5])
        raise StatisticsError(
            explain(
                "a model needs a layer that remembers moments and is not frozen",
                f"{type(model).__name__} with none" + (f" ({shown})" if shown else ""),
                "leave it as it is: nothing in it depends on remembered statistics; or unfreeze "
                "it, or make its layers known with memory_of.register",
            )
        )
    return places, left


def _held(layer: nn.Module, model: nn.Module) -> str | None:
    """Why somebody wants this layer's moments to stay, or None."""
    if isinstance(layer, Held):
        return "frozen"
    if getattr(layer, "momentum", None) == 0:
        return "momentum 0 holds it still"
    if model.training and not layer.training:
        return "in evaluation mode within a model that trains: frozen"
    return None


def named_moments(model: nn.Module) -> dict[str, Tensor]:
    """All moments that ``model`` remembers, by the names that its state dict gives them.

    A layer that stands in several places is there several times, as it is there.

    >>> list(named_moments(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
    ['1.running_mean', '1.running_var']
    """
    return {
        f"{name}.{attribute}" if name else attribute: getattr(layer, attribute)
        for name, layer in model.named_modules(remove_duplicate=False)
        if (memory := memory_of(layer)) is not None
        for attribute in (memory.mean, memory.var)
    }
