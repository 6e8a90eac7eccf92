"""Batches on their way to another device."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import normkit as nk
from normkit.errors import OptionError
from normkit.statistics.batches.map_batches import map_batches
from normkit.statistics.batches.tensors import count_samples, to_device

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


class Graphs:
    """As PyTorch Geometric's batches: nodes of several graphs."""

    num_graphs = 4
    x = torch.zeros(30, 2)


PACKED = torch.nn.utils.rnn.pack_sequence([torch.zeros(n, 2) for n in (5, 3, 1)])
IMAGE, N = torch.zeros(3, 4, 4), torch.zeros(8, 2)


@pytest.mark.parametrize(
    ("batch", "number"),
    [
        (N, 8),
        ((N, torch.zeros(8)), 8),
        (((N, N), torch.zeros(8)), 8),
        (([N, N], torch.zeros(8)), 8),
        (([IMAGE, IMAGE], [{}, {}]), 2),
        (([IMAGE, IMAGE], torch.zeros(2)), 2),
        (((IMAGE, IMAGE), ({}, {})), 2),
        (([IMAGE, torch.zeros(3, 5, 6)],), 2),
        ([{"image": IMAGE, "id": 1}, {"image": IMAGE, "id": 2}], 2),
        ([{"x": N}, {"y": N}], 8),
        ({"images": [IMAGE, IMAGE], "targets": [{}, {}]}, 2),
        ({"levels": [N, N], "y": torch.zeros(8)}, 8),
        ({"tokens": torch.zeros(8, 12, dtype=torch.int64), "mask": torch.zeros(8, 12)}, 8),
        ({"boxes": torch.zeros(0, 4), "image": N}, 8),
        ({"image": N, "boxes": torch.zeros(40, 4), "labels": torch.zeros(40)}, 8),
        ({"weights": torch.zeros(3), "input": N}, 8),
        ({"lengths": torch.zeros(8), "weights": torch.zeros(3)}, 8),
        ((torch.zeros(3), PACKED), 3),
        (((N, N), {"y": torch.zeros(8)}), 8),
        (((N, N), [torch.zeros(8)]), 8),
        (([IMAGE, IMAGE], {"y": torch.zeros(2)}), 2),
        (Graphs(), 4),
        ((Graphs(), torch.zeros(4)), 4),
        (PACKED, 3),
        ((PACKED, torch.zeros(3)), 3),
        ((torch.zeros(0, 2), torch.zeros(0)), 0),
        (torch.zeros(()), None),
        ("text", None),
        ((), None),
    ],
)
def test_count_samples(batch: Any, number: int | None) -> None:
    assert count_samples(batch) == number


def test_packed_sequence_is_the_input() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, packed: Any) -> Tensor:
            return self.norm(packed.data)  # type: ignore[no-any-return]

    for batch in (PACKED, (PACKED, torch.zeros(3))):
        assert nk.recalibrate(Last(), [batch] * 3).samples == 9


class Passing(nn.Module):
    """Hands on whatever comes, as the wrappers of FSDP do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nk.BatchNorm1d])
def test_entries_that_the_module_in_a_wrapper_names(layer: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = layer(2)

        def forward(self, image: Tensor) -> Any:
            return self.norm(image)

    batches = [{"image": torch.randn(64, 2), "label": torch.zeros(64)}]
    assert nk.recalibrate(Passing(Passing(Net())), batches, progress=False).samples == 64


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nk.BatchNorm1d])
@pytest.mark.parametrize("kind", ["weights first", "pair of inputs"])
def test_iterators_whose_first_tensor_is_not_the_batch(layer: Any, kind: str) -> None:
    """Refused for batches of 2 or 3 samples they were; as many samples as in a list they are."""
    model = nn.Sequential(layer(2), nn.Linear(2, 2), layer(2))
    parts = torch.randn(128, 2).split(64)
    batches: list[Any] = [((x, x), {"y": x[:, 0]}) for x in parts]
    forward = lambda model, batch: model(batch[0][0])  # noqa: E731
    if kind == "weights first":
        batches = [{"weights": torch.ones(3), "input": x} for x in parts]
        forward = lambda model, batch: model(batch["input"])  # noqa: E731
    for given in (batches, iter(batches)):
        result = nk.recalibrate(model, given, forward=forward, progress=False)
        assert (result.samples, result.passes) == (128, 1)
