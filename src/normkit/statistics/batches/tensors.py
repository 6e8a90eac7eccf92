"""Tensors of a batch, however it nests them: list them, count samples by them, move them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = ["count_samples", "is_list_of_samples", "tensors_in", "to_device"]


def tensors_in(batch: object) -> list[Tensor]:
    """Return the tensors of a batch, however it nests them."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, PackedSequence):  # the rest of it are lengths, on the CPU
        return [batch.data]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        batch = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        return [tensor for part in batch for tensor in tensors_in(part)]
    return []


def count_samples(batch: object) -> int | None:
    """Return the length of the first axis of the first tensor that has one; None without such.

    One with further axes comes first, as one axis may be weights or other settings.
    Empty tensors count only if all are empty: a batch without boxes still has images. Lists of
    samples count their samples: of images, as detectors take them, or of mappings with the same
    keys. Graphs count themselves (``num_graphs``), and packed sequences those that are packed.

    >>> import torch
    >>> count_samples({"id": torch.tensor(3), "image": torch.zeros(8, 3, 4, 4)})
    8
    >>> count_samples(([torch.zeros(3, 4, 4), torch.zeros(3, 5, 6)], "targets"))
    2
    >>> count_samples(((torch.zeros(8, 3), torch.zeros(8, 5)), torch.zeros(8)))
    8
    """
    if is_list_of_samples(batch):
        return len(batch)  # type: ignore[arg-type]
    parts: list[Any] = [batch]
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif isinstance(batch, (list, tuple)) and not isinstance(batch, PackedSequence):
        parts = list(batch)
    lengths: list[int] = []
    inputs: list[int] = []  # of what has more than a single value for each sample
    for i, part in enumerate(parts):
        if isinstance(part, PackedSequence):
            inputs.append(int(part.batch_sizes[0]))
        elif isinstance(graphs := getattr(part, "num_graphs", None), int):
            inputs.append(graphs)
        elif _is_list_of_tensors(part) and _goes_by_sample(batch, i, part, parts):
            inputs.append(len(part))
        else:
            tensors = tensors_in(part)
            lengths += [len(tensor) for tensor in tensors if tensor.dim() == 1]
            inputs += [len(tensor) for tensor in tensors if tensor.dim() > 1]
    lengths = inputs + lengths
    return next((length for length in lengths if length), 0 if lengths else None)


def _is_list_of_tensors(part: object) -> bool:
    sequence = isinstance(part, (list, tuple)) and not isinstance(part, PackedSequence)
    return sequence and bool(part) and all(isinstance(one, Tensor) for one in part)  # type: ignore[attr-defined]


def _goes_by_sample(batch: object, place: int, part: Any, parts: list[Any]) -> bool:
    """Return whether a list of tensors has a tensor for each sample, and not for each input."""
    others = parts[:place] + parts[place + 1 :]
    if any(isinstance(one, (list, tuple)) and len(one) == len(part) for one in others):
        return True
    if place or isinstance(batch, Mapping):
        return False
    lengths = {len(tensor) if tensor.dim() else None for tensor in part}
    labels = [len(one) for one in tensors_in(others) if one.dim()]
    return not (len(lengths) == 1 and labels and labels[0] in lengths)


def is_list_of_samples(batch: object) -> bool:
    """Return whether a batch is a list of mappings with the same keys."""
    if not isinstance(batch, (list, tuple)) or len(batch) < 2:
        return False
    keys = [part.keys() for part in batch if isinstance(part, Mapping)]
    return len(keys) == len(batch) and all(each == keys[0] for each in keys)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch to a device.

    >>> to_device((torch.ones(1), "a"), torch.device("meta"))
    (tensor(..., device='meta', size=(1,)), 'a')
    """
    # Some libraries have their own classes for batches, with a method that moves them.
    if isinstance(batch, Tensor) or callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        parts = [to_device(part, device) for part in batch]
        if isinstance(batch, list):
            return parts
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch
