"""A loader that is being trained from can be looked through in the middle of its epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset, WeightedRandomSampler

import normkit as nk
from normkit.errors import OptionError
from normkit.statistics.batches.detached_loader import DetachedLoader
from tests.few import few

DATA = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))


class Endless(Sampler[int]):
    """Draws from a generator function of Python's, which cannot be copied."""

    def __init__(self) -> None:
        self.numbers = (i % 24 for i in range(10**6))

    def __iter__(self) -> Iterator[int]:
        return (next(self.numbers) for _ in range(24))

    def __len__(self) -> int:
        return 24


def _own_generator() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(TensorDataset(DATA), batch_size=4, shuffle=True, generator=generator)


def _global_generator() -> DataLoader[Any]:
    return DataLoader(TensorDataset(DATA), batch_size=4, shuffle=True)


def _workers_that_stay() -> DataLoader[Any]:
    return DataLoader(
        TensorDataset(DATA), batch_size=4, shuffle=True, num_workers=1, persistent_workers=True
    )


def _weighted() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(7)
    sampler = WeightedRandomSampler(torch.arange(24.0).tolist(), 24, generator=generator)
    return DataLoader(TensorDataset(DATA), batch_size=4, sampler=sampler)


LOADERS = (_own_generator, _global_generator, _workers_that_stay, _weighted)


@pytest.mark.parametrize("make", LOADERS)
@pytest.mark.parametrize("layerwise", few([False, True], lambda layerwise: layerwise))
def test_epoch_continues_bitwise(make: Any, layerwise: bool) -> None:
    def two_epochs(look: bool) -> list[Tensor]:
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
        torch.manual_seed(11)
        loader, seen = make(), []
        for _ in range(2):
            for number, (x,) in enumerate(loader):
                seen.append(x)
                if look and number == 2:
                    before = torch.get_rng_state()
                    found = nk.recalibrate(model, loader, layerwise=layerwise)
                    assert found.samples == 24
                    assert torch.equal(torch.get_rng_state(), before)
        return seen

    expected, got = two_epochs(False), two_epochs(True)
    assert len(got) == len(expected) == 12
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_dataset_is_not_copied() -> None:
    loader = _own_generator()
    copy = DetachedLoader(loader).copy()
    assert isinstance(copy, DataLoader)
    assert copy.dataset is loader.dataset
    assert copy.sampler.data_source is loader.dataset  # type: ignore[attr-defined]
    assert copy.sampler is copy.batch_sampler.sampler  # type: ignore[union-attr]
    assert copy.generator is not loader.generator


def test_uncopyable_sampler_is_shared() -> None:
    loader = DataLoader(TensorDataset(DATA), batch_size=4, sampler=Endless())
    assert nk.recalibrate(nn.BatchNorm1d(3), loader).samples == 24


def test_layerwise_rejects_iterator() -> None:
    with pytest.raises(OptionError, match="several passes"):
        nk.recalibrate(nn.BatchNorm1d(3), iter([DATA]), layerwise=True)
