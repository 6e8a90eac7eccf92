"""Data of every kind, in batches of every shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

__all__ = [
    "as_dicts",
    "as_lists",
    "as_loader",
    "as_nested",
    "as_pairs",
    "as_scalars",
    "as_two",
    "data",
    "labels",
    "scales",
    "stream",
]


def data(
    sizes: Iterable[int],
    shape: tuple[int, ...],
    values: str = "normal",
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Return batches of these sizes."""
    sizes = list(sizes)
    g = torch.Generator().manual_seed(len(sizes) + sum(sizes))
    if values == "tokens":
        return [torch.randint(5, (n, *shape), generator=g) for n in sizes]
    x = torch.randn(sum(sizes), *shape, generator=g, dtype=torch.float64)
    if values == "sorted":
        x = x.sort(0).values
    elif values == "constant":
        x = torch.full_like(x, 2.0)
    elif values == "offset":
        x = x / 10 + 100
    elif values == "huge":
        x = x * 1e25
    elif values == "unlike":
        x = x * (1 + torch.arange(len(x)).view(-1, *[1] * len(shape)))
    elif values == "nan" and x.numel():
        x.view(-1)[-1] = torch.nan
    elif values == "infinite" and x.numel():
        x.view(-1)[-1] = torch.inf
    return list(x.to(dtype).split(sizes))


def scales(x: Tensor) -> Tensor:
    """Return the second input that goes with an input."""
    return torch.linspace(1, 2, len(x), dtype=torch.float64).to(x.dtype)


def as_two(batches: list[Tensor]) -> list[Any]:
    """{"x": x, "scale": scale, "labels": labels}."""
    return [{"x": x, "scale": scales(x), "labels": labels(x)} for x in batches]


def labels(x: Tensor) -> Tensor:
    """Return a label for each sample; every third is to be ignored."""
    y = torch.arange(len(x)) % 2
    y[2::3] = -100
    return y


def as_pairs(batches: list[Tensor]) -> list[Any]:
    """(x, labels)."""
    return [(x, labels(x)) for x in batches]


def as_lists(batches: list[Tensor]) -> list[Any]:
    """[x, labels]."""
    return [[x, labels(x)] for x in batches]


def as_dicts(batches: list[Tensor]) -> list[Any]:
    """{"x": x, "labels": labels}."""
    return [{"x": x, "labels": labels(x)} for x in batches]


def as_nested(batches: list[Tensor]) -> list[Any]:
    """((x, x), {"labels": labels})."""
    return [((x, x), {"labels": labels(x)}) for x in batches]


def as_scalars(batches: list[Tensor]) -> list[Any]:
    """A dictionary that begins with a number and a string."""
    return [{"id": 3, "name": "a", "x": x} for x in batches]


def as_loader(batches: list[Tensor], size: int, **options: Any) -> DataLoader[Any]:
    """A DataLoader over all samples, in batches of ``size``."""
    x = torch.cat(batches)
    return DataLoader(TensorDataset(x, labels(x)), batch_size=size, **options)


def stream(batches: Iterable[Any]) -> Iterator[Any]:
    """A generator, to be gone over once."""
    yield from batches
