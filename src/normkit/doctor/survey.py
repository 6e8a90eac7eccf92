"""Survey batches before any layer gets them: sizes, labels, inputs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from normkit.statistics.batches.detached_loader import DetachedLoader
from normkit.statistics.batches.tensors import count_samples, tensors_in
from normkit.statistics.outputs.labels import LABELS, is_class_labels, labels_of

__all__ = ["Inputs", "Survey", "keep", "survey"]

CHANNELS = 64
"""Channels of the input that are looked at, the first ones."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The model's input, the first tensor of each batch, where it is floating-point or bytes.

    Attributes:
        means, deviations: (N, C), of each channel of each sample, in float64; inputs of one
            value for each channel have a deviation of 0.
        batch: (N,), the number of the batch that a sample came in, from 0.
        least, greatest: of all values.
        dtype: as it comes.
    """

    means: Tensor
    deviations: Tensor
    batch: Tensor
    least: float
    greatest: float
    dtype: torch.dtype

    @property
    def mean(self) -> Tensor:
        """(C,), of all values of a channel."""
        return self.means.mean(0)

    @property
    def deviation(self) -> Tensor:
        """(C,), likewise."""
        return (self.deviations.square().mean(0) + self.means.var(0, correction=0)).sqrt()


@dataclasses.dataclass(frozen=True)
class Survey:
    """Batches as a loader gives them.

    Attributes:
        sizes: of the batches that were read, in their order.
        complete: whether they are all there are.
        total: samples of an epoch, where that is known without reading them.
        batch_size: what the loader was asked for, or the size most batches have.
        last: size of an epoch's last batch, where known; 0 where one that is not full is dropped.
        labels: (N,) classes, where there is one integer a sample.
        batch: (N,) the number of the batch of each label.
        inputs: of the first samples; None where the input is no tensor of numbers.
        ordered: whether the loader is known to read its data set in its order.
    """

    sizes: tuple[int, ...]
    complete: bool
    total: int | None
    batch_size: int
    last: int | None
    labels: Tensor | None
    batch: Tensor | None
    inputs: Inputs | None
    ordered: bool | None

    @property
    def samples(self) -> int:
        return sum(self.sizes)


def keep(batches: Iterable[Any], samples: int | None) -> Iterable[Any]:
    """Return batches that can be read several times: of an iterator, a list of as many as needed.

    Of an iterator one batch more is read, to know whether it ends there.
    """
    loader = DetachedLoader(batches)
    if loader.begins_again():
        return batches
    read: list[Any] = []
    count = 0
    for batch in loader:
        read.append(batch)
        if samples is not None and count >= samples:
            break
        count += count_samples(batch) or 0
    return read


def survey(batches: Iterable[Any], samples: int | None) -> Survey:
    """Read up to ``samples`` samples and describe them."""
    sizes: list[int] = []
    labels: list[Tensor] | None = []
    parts: list[tuple[Tensor, Tensor, float, float, torch.dtype]] | None = []
    complete = True
    for batch in DetachedLoader(batches):
        if samples is not None and sum(sizes) >= samples:
            complete = False
            break
        size = count_samples(batch) or 0
        sizes.append(size)
        if labels is not None:
            of_batch = labels_of(batch)
            fits = of_batch is not None and of_batch.dim() == 1 and is_class_labels(of_batch)
            labels = [*labels, of_batch.cpu()] if fits and of_batch is not None else None
        if parts is not None:
            part = _input_of(batch)
            parts = None if part is None or (parts and _differ(part, parts[0])) else [*parts, part]
    numbers = [torch.full((n,), i) for i, n in enumerate(sizes)]
    inputs = None
    if parts:
        means, deviations, least, greatest, dtypes = zip(*parts, strict=True)
        order = torch.cat([torch.full((len(m),), i) for i, m in enumerate(means)])
        inputs = Inputs(
            torch.cat(means), torch.cat(deviations), order, min(least), max(greatest), dtypes[0]
        )
    total, batch_size, last, ordered = _facts(batches, sizes, complete)
    return Survey(
        tuple(sizes), complete, total, batch_size, last,
        torch.cat(labels) if labels else None,
        torch.cat(numbers) if labels else None,
        inputs, ordered,
    )  # fmt: skip


def _differ(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return bool(a[0].shape[1] != b[0].shape[1] or a[4] != b[4])


def _input_of(batch: Any) -> tuple[Tensor, Tensor, float, float, torch.dtype] | None:
    if isinstance(batch, Mapping):
        batch = [value for key, value in batch.items() if key not in LABELS]
    elif isinstance(batch, (list, tuple)) and batch:
        batch = batch[0]
    tensor = next(iter(tensors_in(batch)), None)
    if tensor is None or tensor.dim() < 2 or not tensor.numel():
        return None
    if not (tensor.is_floating_point() or tensor.dtype == torch.uint8):
        return None
    values = tensor.detach()[:, :CHANNELS].double()
    if values.dim() == 2:
        means, deviations = values, torch.zeros_like(values)
    else:
        values = values.flatten(2)
        means, deviations = values.mean(2), values.std(2, correction=0)
    return means.cpu(), deviations.cpu(), float(values.min()), float(values.max()), tensor.dtype


def _facts(
    batches: Iterable[Any], sizes: list[int], complete: bool
) -> tuple[int | None, int, int | None, bool | None]:
    """Return samples of an epoch, size of a batch, size of the last one, whether in order."""
    usual = max(set(sizes), key=sizes.count) if sizes else 0
    loader = _dataloader(batches)
    if loader is not None and loader.batch_sampler is not None:
        ordered = isinstance(loader.sampler, torch.utils.data.SequentialSampler)
        try:
            total = len(loader.sampler)  # type: ignore[arg-type]
        except TypeError:
            total = None
        if total is None or loader.batch_size is None:
            last = sizes[-1] if complete and sizes else None
            return total, loader.batch_size or usual, last, ordered
        rest = total % loader.batch_size
        last = loader.batch_size if not rest else 0 if loader.drop_last else rest
        return total, loader.batch_size, last, ordered
    if complete and sizes:
        return sum(sizes), usual, sizes[-1], None
    if isinstance(batches, Sequence) and sizes:
        return None, usual, count_samples(batches[-1]), None
    return None, usual, None, None


def _dataloader(batches: Any, depth: int = 3) -> DataLoader[Any] | None:
    """Find the loader in objects that wrap one, such as those that move batches to a device."""
    if isinstance(batches, DataLoader):
        return batches
    if depth == 0 or isinstance(batches, (list, tuple, Iterator)):
        return None
    inner = getattr(batches, "__dict__", {}).values()
    loaders = (_dataloader(one, depth - 1) for one in itertools.islice(inner, 16))
    return next((one for one in loaders if one is not None), None)
