"""Batches on their way to another device."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import normkit as nk
from normkit.errors import OptionError
from normkit.statistics.batches import map_batches, to_device

META = torch.device("meta")


class Pair(NamedTuple):
    image: Tensor
    names: list[str]


class Encoded:
    """As libraries have them: a batch that knows how to move."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def to(self, device: torch.device) -> Encoded:
        return Encoded(device)


def test_to_device_keeps_structure() -> None:
    x = torch.ones(2)
    batch = {"a": [x, (x, 3)], "pair": Pair(x, ["one", "two"]), "own": Encoded(x.device)}
    got = to_device(batch, META)
    assert got["a"][0].device == got["a"][1][0].device == META
    assert got["a"][1][1] == 3
    assert isinstance(got["pair"], Pair)
    assert got["pair"].image.device == META
    assert got["pair"].names == ["one", "two"]
    assert got["own"].device == META
    assert batch["a"][0].device.type == "cpu"  # type: ignore[index]


def test_mapped_batches_are_reiterable() -> None:
    data = torch.arange(12.0).view(6, 2)
    loader = DataLoader(data, 2, shuffle=True, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    twice = map_batches(lambda batch: 2 * batch, loader)
    found = nk.recalibrate(model, twice, layerwise=True)
    assert found.passes > 1
    torch.testing.assert_close(found.layers["0"].mean, 2 * data.double().mean(0))
    with pytest.raises(OptionError, match="several passes"):
        nk.recalibrate(model, map_batches(lambda batch: batch, iter(loader)), layerwise=True)
