"""Where a training takes place: on which device, and by how many processes together.

A :class:`Place` says what is different from one process on a CPU, and training and evaluation ask
it at the points where it is: it brings batches to the device, takes a process's share of them, and
adds up over the processes. The place of a training is in force while it runs (:func:`at`,
:func:`here`), as ``torch.distributed`` itself is, so that what lies between the training and those
points need not pass it on.

Processes that train together see the same images in the same order and take equal parts of each
batch, or nearly: the results are those of one process, but for the order in which numbers are
added. So only runs take part whose every layer can be told to work on the whole batch; see
:func:`alone_because`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from normkit.errors import OptionError, explain
from normkit.lab.config import RunConfig

__all__ = ["Place", "alone_because", "at", "device_named", "here"]

Pairs = Iterator[tuple[Tensor, Tensor]]


class Place:
    """One process on one device; :class:`Together` is several.

    Args:
        device: on which model, batches and the optimizer's state are.
    """

    rank = 0
    size = 1
    #: What :func:`normkit.recalibrate` merges over: this process alone, whoever else is there.
    group: Literal[False] | None = False

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def settle(self, model: nn.Module) -> nn.Module:
        """Bring a model to the device; returns what to call in a training step."""
        return model.to(self.device)

    def bring(self, batches: Pairs) -> Pairs:
        """The batches, on the device."""
        if self.device.type == "cpu":
            return batches
        return ((images.to(self.device), targets.to(self.device)) for images, targets in batches)

    def part(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """This process's part of a training batch, on the device."""
        return images.to(self.device), targets.to(self.device)

    def turns(self, batches: Pairs) -> Pairs:
        """Those of the batches that this process works on, where each is worked on whole."""
        return batches

    def total(self, *numbers: float) -> tuple[float, ...]:
        """Each number summed over the processes."""
        return numbers

    def told(self, asked: bool) -> bool:
        """What the first process says."""
        return asked

    @contextlib.contextmanager
    def apart(self, model: nn.Module) -> Iterator[None]:
        """Each process runs the model on batches of its own meanwhile."""
        yield

    def __str__(self) -> str:
        """What to note beside a run; nothing for one process on a CPU."""
        if self.device.type == "cpu":
            return ""
        return f"{self.device.type}: {torch.get_device_module(self.device).get_device_name()}"


class Together(Place):
    """All processes of an initialized ``torch.distributed``, each on its device.

    All of them make one of these at the same time.
    """

    group = None

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # Groups are made by all processes, also those that they are not in.
        groups = [dist.new_group([rank]) for rank in range(self.size)]
        self._own = groups[self.rank]

    def settle(self, model: nn.Module) -> nn.Module:
        """Layers that pool over the batch do so over all processes; gradients are averaged."""
        from normkit.nn import SyncBatchNorm

        SyncBatchNorm.convert_sync_batchnorm(super().settle(model))
        if not any(weight.requires_grad for weight in model.parameters()):
            return model
        where = None if self.device.type == "cpu" else [self.device]
        # The layers' own statistics end alike everywhere, so there is nothing to broadcast.
        return nn.parallel.DistributedDataParallel(
            model, device_ids=where, forward_sync_buffers=False
        )

    def part(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # As tensor_split does it: the first ones get one more where it does not come out even.
        parts = (each.tensor_split(self.size)[self.rank] for each in (images, targets))
        mine, its_targets = (part.to(self.device) for part in parts)
        return mine, its_targets

    def turns(self, batches: Pairs) -> Pairs:
        return itertools.islice(batches, self.rank, None, self.size)

    def total(self, *numbers: float) -> tuple[float, ...]:
        # On the CPU, in float64: what is added are sums already, and few.
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def told(self, asked: bool) -> bool:
        return self.total(float(asked and self.rank == 0))[0] > 0

    @contextlib.contextmanager
    def apart(self, model: nn.Module) -> Iterator[None]:
        from normkit.nn import SyncBatchNorm

        layers = [module for module in model.modules() if isinstance(module, SyncBatchNorm)]
        for layer in layers:
            layer.process_group = self._own
        try:
            yield
        finally:
            for layer in layers:
                layer.process_group = None

    def __str__(self) -> str:
        words = [super().__str__(), f"{self.size} processes together"]
        return ", ".join(filter(None, words))


def alone_because(config: RunConfig, model: nn.Module) -> str:
    """Why one process trains this run by itself, although there are several; empty if none does.

    >>> run = RunConfig(model="lenet5", norm="batch", lr=0.1, train_images=8, test_images=8,
    ...                 batch_size=4, epochs=1, seed=0)
    >>> alone_because(run, nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    ''
    >>> alone_because(run, nn.Dropout())
    'each process would draw masks of its own (Dropout)'
    """
    if config.kind != "training":
        return "time is taken of one process"
    if config.probes:
        return "a probe sees what goes through one process"
    if config.domains:
        return "a batch holds a part for each domain"
    for module in model.modules():
        name = type(module).__name__
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return f"each process would draw masks of its own ({name})"
        if isinstance(module, _NormBase) and type(module) not in _whole_batch():
            return f"not the whole batch has one mean ({name})"
    return ""


@functools.cache
def _whole_batch() -> tuple[type[Any], ...]:
    """The layers that SyncBatchNorm takes the place of, number for number."""
    from normkit import nn as own

    names = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
    return tuple(getattr(of, name) for of in (nn, own) for name in names)


def device_named(name: str) -> torch.device:
    """The device of this name.

    Raises:
        OptionError: there is none here.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            explain(
                "the device cuda needs a GPU and a build of PyTorch for it",
                f"PyTorch {torch.__version__}, which sees none",
                "leave out --device, or run on a machine with a GPU",
            )
        )
    return torch.device(name)


_here: contextvars.ContextVar[Place] = contextvars.ContextVar("place")
_CPU = Place()


def here() -> Place:
    """The place that is in force; one process on the CPU if none was named."""
    return _here.get(_CPU)


@contextlib.contextmanager
def at(place: Place) -> Iterator[Place]:
    """Put a place in force meanwhile."""
    before = _here.set(place)
    try:
        yield place
    finally:
        _here.reset(before)
