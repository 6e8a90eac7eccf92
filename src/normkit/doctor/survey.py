"""Survey batches before any layer gets them: sizes, labels, inputs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from normkit.statistics.batches.detached_loader import DetachedLoader
from normkit.statistics.batches.tensors import count_samples, tensors_in
from normkit.statistics.outputs.labels import IGNORED_LABEL, LABELS, is_class_labels, labels_of

__all__ = ["Inputs", "Survey", "keep", "survey"]

CHANNELS, COLUMNS = 64, 512
"""Channels of the input, or columns of one value each, that are looked at, evenly spaced."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The model's input, the first tensor of each batch, where it is floating-point.

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
        labels: (N,) classes, where there is one integer a sample, without those to be ignored.
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
    labels: list[Tensor | None] = []
    parts: list[_Part | None] = []
    count, complete = 0, True
    for batch in DetachedLoader(batches):
        if samples is not None and count >= samples:
            complete = False
            break
        size = count_samples(batch) or 0
        sizes.append(size)
        count += size
        labels.append(_classes(batch))
        parts.append(_input_of(batch, size))
    total, batch_size, last, ordered = _facts(batches, sizes, complete)
    return Survey(
        tuple(sizes), complete, total, batch_size, last, *_numbered(labels), _inputs(parts), ordered
    )


def _classes(batch: Any) -> Tensor | None:
    """Return one integer a sample, or None."""
    labels = labels_of(batch)
    if labels is None or labels.dim() != 1 or not is_class_labels(labels):
        return None
    return labels.cpu()


def _numbered(labels: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """Join the labels that count, and number their batches; None if a batch has none."""
    known = [each for each in labels if each is not None]
    if not known or len(known) < len(labels):
        return None, None
    numbers = [torch.full((len(each),), i) for i, each in enumerate(known)]
    joined, number = torch.cat(known), torch.cat(numbers)
    counts = joined != IGNORED_LABEL
    return joined[counts], number[counts]


class _Part(NamedTuple):
    means: Tensor
    deviations: Tensor
    least: float
    greatest: float
    dtype: torch.dtype


def _inputs(parts: Sequence[_Part | None]) -> Inputs | None:
    """Join what the batches show; None if they do not fit together."""
    known = [each for each in parts if each is not None]
    kinds = {(each.means.shape[1], each.dtype) for each in known}
    if len(known) < len(parts) or len(kinds) != 1:
        return None
    means, deviations, least, greatest, dtypes = zip(*known, strict=True)
    order = torch.cat([torch.full((len(each),), i) for i, each in enumerate(means)])
    return Inputs(
        torch.cat(means), torch.cat(deviations), order, min(least), max(greatest), dtypes[0]
    )


def _input_of(batch: Any, size: int) -> _Part | None:
    if isinstance(batch, Mapping):
        batch = [value for key, value in batch.items() if key not in LABELS]
    elif isinstance(batch, (list, tuple)) and batch:
        batch = batch[0]
    tensor = next(iter(tensors_in(batch)), None)
    if tensor is None or tensor.dim() < 2 or not tensor.numel() or len(tensor) != size:
        return None
    # Bytes are turned into something else by the model before a layer takes them.
    if not tensor.is_floating_point():
        return None
    tensor = tensor.detach()
    limit = CHANNELS if tensor.dim() > 2 else COLUMNS
    step = -(-tensor.shape[1] // limit)
    values = tensor[:, ::step].double().reshape(size, -(-tensor.shape[1] // step), -1)
    means, deviations = values.mean(2), values.std(2, correction=0)
    return _Part(
        means.cpu(), deviations.cpu(), float(tensor.min()), float(tensor.max()), tensor.dtype
    )


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
