"""Fashion-MNIST, 5,000 training and 1,000 test images, and loaders that give them well or badly."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

__all__ = [
    "by_class",
    "dark",
    "evaluation_batches",
    "in_turn",
    "inverted",
    "mixed_domains",
    "standardized",
    "train_batches",
]

FOLDER = "FAULTS_DATA"
"""Environment variable: a folder of Fashion-MNIST's four files; without it, normkit's subset."""
MEAN, DEVIATION = 0.286, 0.353
"""Of the training images, where white is 1."""

Change = Callable[[Tensor], Tensor]
Order = Callable[[Tensor, int], list[list[int]]]


def _folder() -> Path:
    if named := os.environ.get(FOLDER):
        return Path(named)
    spec = importlib.util.find_spec("normkit")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"install normkit, or name a folder of Fashion-MNIST in {FOLDER}")
    return Path(spec.origin).parent / "lab/data/subset"


def _read(name: str) -> Tensor:
    raw = gzip.decompress((_folder() / f"{name}-ubyte.gz").read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">i4", rank, 4)
    return torch.tensor(np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape))


@functools.cache
def images(part: str, size: int = 28) -> tuple[Tensor, Tensor]:
    """Return images (N, 1, size, size) between 0 and 1, and labels, of "train" or "t10k"."""
    count = 5_000 if part == "train" else 1_000
    pixels = _read(f"{part}-images-idx3")[:count, None].float() / 255
    labels = _read(f"{part}-labels-idx1")[:count].long()
    if size != 28:
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return pixels, labels


def standardized(pixels: Tensor) -> Tensor:
    """Subtract the mean and divide by the deviation of the training images."""
    return (pixels - MEAN) / DEVIATION


def inverted(pixels: Tensor) -> Tensor:
    """Return the negative, standardized as if it were none."""
    return standardized(1 - pixels)


def dark(pixels: Tensor) -> Tensor:
    """Return the images at 30 % of their brightness, standardized as if they were bright."""
    return standardized(0.3 * pixels)


def _generator() -> torch.Generator:
    """Make a generator of the training's seed, apart from the global one."""
    return torch.Generator().manual_seed(torch.initial_seed() % 2**32 + 1)


class _Batches(Sampler[list[int]]):
    """Batches in an order of their own, in every epoch the same ones in another order."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches
        self.generator = _generator()

    def __iter__(self) -> Iterator[list[int]]:
        for i in torch.randperm(len(self.batches), generator=self.generator).tolist():
            yield self.batches[i]

    def __len__(self) -> int:
        return len(self.batches)


def by_class(labels: Tensor, batch_size: int, classes: int = 2) -> list[list[int]]:
    """Return batches of neighbouring classes, as files in folders by class give them."""
    batches = []
    for first in range(0, 10, classes):
        chosen = ((labels >= first) & (labels < first + classes)).nonzero().flatten()
        batches += [one.tolist() for one in chosen.split(batch_size) if len(one) == batch_size]
    return batches


def in_turn(labels: Tensor, batch_size: int) -> list[list[int]]:
    """Return batches of neighbouring images, none that is not full."""
    numbers = torch.arange(len(labels)).split(batch_size)
    return [one.tolist() for one in numbers if len(one) == batch_size]


def mixed_domains(pixels: Tensor) -> Tensor:
    """Return the first half of the images as they are, and the negatives of the second half."""
    half = len(pixels) // 2
    return torch.cat([standardized(pixels[:half]), inverted(pixels[half:])])


def train_batches(
    *,
    size: int = 28,
    count: int = 5_000,
    batch_size: int = 64,
    change: Change = standardized,
    order: Order | None = None,
    drop_last: bool = True,
    dtype: torch.dtype = torch.float32,
) -> DataLoader[Any]:
    """Make a loader of training images, shuffled unless it has an order."""
    pixels, labels = (tensor[:count] for tensor in images("train", size))
    dataset = TensorDataset(change(pixels).to(dtype), labels)
    if order is not None:
        return DataLoader(dataset, batch_sampler=_Batches(order(labels, batch_size)))
    return DataLoader(dataset, batch_size, True, generator=_generator(), drop_last=drop_last)


def evaluation_batches(
    *,
    size: int = 28,
    change: Change = standardized,
    order: Order | None = None,
    batch_size: int = 100,
    dtype: torch.dtype = torch.float32,
) -> DataLoader[Any]:
    """Make a loader of test images, in their order unless it has one."""
    pixels, labels = images("t10k", size)
    dataset = TensorDataset(change(pixels).to(dtype), labels)
    if order is not None:
        return DataLoader(dataset, batch_sampler=order(labels, batch_size))
    return DataLoader(dataset, batch_size)
