"""The placement of a training: its device, and the processes that share it.

A :class:`Placement` holds everything that differs from one process on a CPU: moving batches to the
device, taking this process's shard of them, summing over processes. The placement of a training is
in force while it runs (:func:`use_placement`, :func:`current_placement`), as the state of
``torch.distributed`` is, so the functions in between need not pass it on.

Processes that train together see the same images in the same order and take equal shards of each
batch, or nearly equal ones: the results are those of one process, but for the order of summation.
So only runs whose every layer can pool over the whole batch take part; see
:func:`why_single_process`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from normkit.errors import OptionError, message
from normkit.lab.config import RunConfig

__all__ = [
    "DistributedPlacement",
    "Placement",
    "current_placement",
    "find_device",
    "use_placement",
    "why_single_process",
]

Pairs = Iterator[tuple[Tensor, Tensor]]
T = TypeVar("T")


class Placement:
    """One process on one device; :class:`DistributedPlacement` for several.

    Args:
        device: on which model, batches and the optimizer's state are.
    """

    rank = 0
    size = 1
    #: The group that :func:`normkit.recalibrate` merges over: this process alone.
    process_group: Literal[False] | None = False

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Move a model to the device; return the module to call in a training step."""
        return model.to(self.device)

    def to_device(self, batches: Pairs) -> Pairs:
        """Move the batches to the device."""
        if self.device.type == "cpu":
            return batches
        return ((images.to(self.device), targets.to(self.device)) for images, targets in batches)

    def shard_batch(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return this process's shard of a training batch, on the device."""
        return images.to(self.device), targets.to(self.device)

    def shard_batches(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the batches that this process works on, each of them whole."""
        return batches

    def all_sum(self, *numbers: float) -> tuple[float, ...]:
        """Sum each number over the processes."""
        return numbers

    def broadcast_flag(self, flag: bool) -> bool:
        """Return rank 0's flag."""
        return flag

    @contextlib.contextmanager
    def without_sync(self, model: nn.Module) -> Iterator[None]:
        """Let each process run the model on its own batches in the meantime."""
        yield

    def __str__(self) -> str:
        """Describe the placement for a run's record; empty for one process on a CPU."""
        if self.device.type == "cpu":
            return ""
        return f"{self.device.type}: {torch.get_device_module(self.device).get_device_name()}"


class DistributedPlacement(Placement):
    """All processes of an initialized ``torch.distributed``, each on its device.

    All of them make one of these at the same time.
    """

    process_group = None

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # Groups are made by all processes, also those that they are not in.
        groups = [dist.new_group([rank]) for rank in range(self.size)]
        self._single_rank_group = groups[self.rank]

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Make layers pool over the batches of all processes, and average gradients."""
        from normkit.nn import SyncBatchNorm

        SyncBatchNorm.convert_sync_batchnorm(super().prepare_model(model))
        if not any(weight.requires_grad for weight in model.parameters()):
            return model
        where = None if self.device.type == "cpu" else [self.device]
        # The layers' own statistics end alike everywhere, so there is nothing to broadcast.
        return nn.parallel.DistributedDataParallel(
            model, device_ids=where, forward_sync_buffers=False
        )

    def shard_batch(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # As tensor_split does it: the first ones get one more where it does not come out even.
        parts = (each.tensor_split(self.size)[self.rank] for each in (images, targets))
        mine, its_targets = (part.to(self.device) for part in parts)
        return mine, its_targets

    def shard_batches(self, batches: Iterator[T]) -> Iterator[T]:
        return itertools.islice(batches, self.rank, None, self.size)

    def all_sum(self, *numbers: float) -> tuple[float, ...]:
        # On the CPU, in float64: what is added are sums already, and few.
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def broadcast_flag(self, flag: bool) -> bool:
        return self.all_sum(float(flag and self.rank == 0))[0] > 0

    @contextlib.contextmanager
    def without_sync(self, model: nn.Module) -> Iterator[None]:
        from normkit.nn import SyncBatchNorm

        layers = [module for module in model.modules() if isinstance(module, SyncBatchNorm)]
        for layer in layers:
            layer.process_group = self._single_rank_group
        try:
            yield
        finally:
            for layer in layers:
                layer.process_group = None

    def __str__(self) -> str:
        words = [super().__str__(), f"{self.size} processes together"]
        return ", ".join(filter(None, words))


def why_single_process(config: RunConfig, model: nn.Module) -> str:
    """Explain why one of several processes trains this run alone; empty if all do.

    >>> run = RunConfig(model="lenet5", norm="batch", lr=0.1, train_images=8, test_images=8,
    ...                 batch_size=4, epochs=1, seed=0)
    >>> why_single_process(run, nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    ''
    >>> why_single_process(run, nn.Dropout())
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
    """Return the layers that SyncBatchNorm replaces with equal numbers."""
    from normkit import nn as own

    names = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
    return tuple(getattr(of, name) for of in (nn, own) for name in names)


def find_device(name: str) -> torch.device:
    """Return the device of this name.

    Raises:
        OptionError: there is none here.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            message(
                "a GPU, and a build of PyTorch for it, for the device cuda",
                f"PyTorch {torch.__version__}, which sees none",
                "leave out --device, or run on a machine with a GPU",
            )
        )
    return torch.device(name)


_current: contextvars.ContextVar[Placement] = contextvars.ContextVar("place")
_CPU = Placement()


def current_placement() -> Placement:
    """Return the placement in force; one process on the CPU by default."""
    return _current.get(_CPU)


@contextlib.contextmanager
def use_placement(placement: Placement) -> Iterator[Placement]:
    """Put a placement in force inside the block."""
    before = _current.set(placement)
    try:
        yield placement
    finally:
        _current.reset(before)
