"""Passes on the example leave nothing behind, and what the model hands out is seen."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.tail = nn.Conv2d(4, 4, 1)
        self.kept: Any = None
        self.cache: dict[int, Tensor] = {}
        self.listed: list[Tensor] = []
        nn.init.normal_(self.bn.running_mean)  # type: ignore[arg-type]
        self.eval()

    def table(self, y: Tensor) -> Tensor:
        return torch.linspace(0, 1, y.shape[-1], dtype=y.dtype)

    def forward(self, x: Tensor) -> Any:
        return self.tail(self.bn(self.conv(x)))


class InAttribute(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.bn(self.conv(x))
        if self.kept is None:
            self.kept = self.table(y)
        return self.tail(y + self.kept)


class InNewAttribute(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.bn(self.conv(x))
        if not hasattr(self.tail, "place"):
            self.tail.place = self.table(y)  # type: ignore[assignment]
        return self.tail(y + self.tail.place)


class InBuffer(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.bn(self.conv(x))
        if "place" not in self._buffers:
            self.register_buffer("place", self.table(y), persistent=False)
        return self.tail(y + self.place)


class InDict(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.bn(self.conv(x))
        if y.shape[-1] not in self.cache:
            self.cache[y.shape[-1]] = self.table(y)
        return self.tail(y + self.cache[y.shape[-1]])


class InList(Block):
    def forward(self, x: Tensor) -> Any:
        if not self.listed:
            self.listed.append(self.table(x))
        return self.tail(self.bn(self.conv(x + self.listed[0])))


@pytest.mark.parametrize("model", [InAttribute(), InNewAttribute(), InBuffer(), InDict(), InList()])
@pytest.mark.parametrize("function", [nk.fold, nk.deploy])
def test_caches_stay_as_they_were(model: nn.Module, function: Any) -> None:
    model, fresh = copy.deepcopy(model), copy.deepcopy(model)
    x = torch.randn(2, 3, 8, 8)
    expected = fresh(x)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    handle = function(model, x)
    assert len(handle.changed) == 1
    for name, module in model.named_modules():
        assert set(vars(module)) == before[name] if name in ("", "tail") else True
    assert not model.cache and not model.listed and "place" not in model._buffers
    y = model(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@dataclasses.dataclass
class Boxes:
    feature: Tensor


class Hands(Block):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return self.bn(y), self.wrap(y)


@pytest.mark.parametrize(
    "wrap",
    [
        Boxes,
        lambda y: SimpleNamespace(feature=y),
        lambda y: {"a": [Boxes(y)]},
        lambda y: SimpleNamespace(fields={"feature": y}),
        lambda y: SimpleNamespace(inner=SimpleNamespace(feature=y)),
        lambda y: lambda: y,
    ],
    ids=["dataclass", "object", "nested", "fields", "deep", "closure"],
)
def test_what_an_object_in_the_output_holds_is_left(wrap: Any) -> None:
    model = Hands(wrap)
    with pytest.warns(UserWarning, match="fold changed nothing"):
        handle = nk.fold(model, torch.randn(2, 3, 8, 8))
    assert "seen by" in handle.skipped[0].why


class Paths(Block):
    def __init__(self) -> None:
        super().__init__()
        self.other, self.at = nn.BatchNorm2d(4), 0

    def forward(self, x: Tensor) -> Any:
        return (self.bn, self.other)[self.at](self.conv(x))


def test_other_paths_are_said() -> None:
    handle = nk.fold(Paths().eval(), torch.randn(1, 3, 8, 8))
    assert "without other: another path is wrong where it uses a layer that has changed" in repr(
        handle
    )


class OwnConv(nn.Conv2d):
    """As detectron2's: it calls its normalization itself."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(super().forward(x))
        return y


def test_layers_within_layers_are_named_as_such() -> None:
    with pytest.warns(UserWarning, match="fold changed nothing"):
        handle = nk.fold(nn.Sequential(OwnConv()).eval(), torch.randn(1, 3, 8, 8))
    assert "within another layer" in handle.skipped[0].why


class Asks(Block):
    def forward(self, x: Tensor) -> Any:
        return self.bn(self.conv(x)).view(len(x), self.bn.num_features, -1)


def test_a_model_that_asks_a_folded_layer() -> None:
    model = Asks()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(nk.StatisticsError, match="num_features"):
        nk.fold(model, torch.randn(1, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model.bn) is nn.BatchNorm2d


def test_empty_examples_and_autocast_are_refused() -> None:
    with pytest.raises(nk.DataError, match="an example with a sample"):
        nk.fold(Block(), torch.randn(0, 3, 8, 8))
    with pytest.raises(nk.OptionError, match="outside autocast"), torch.autocast("cpu"):
        nk.fold(Block(), torch.randn(1, 3, 8, 8))


class PadsBefore(Block):
    """The normalization goes into the layer after, which pads at odd sizes."""

    def forward(self, x: Tensor) -> Any:
        x = x.repeat(1, 2, 1, 1)[:, :4]
        y = self.bn(x)
        if y.shape[-1] % 2:
            y = nn.functional.pad(y, (0, 1, 0, 1))
        return self.tail(y)


class FirstOfSequence(nn.Module):
    """Of one token, nothing is left that would not be normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(9, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        nn.init.normal_(self.norm.running_mean)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Any:
        first, others = self.linear(self.embed(x)).split([1, x.shape[1] - 1], 1)
        return torch.cat([self.norm(first[:, 0])[:, None], others], 1)


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (PadsBefore(), torch.randn(1, 3, 8, 8)),
        (FirstOfSequence().eval(), torch.ones(2, 1, dtype=torch.int64)),
    ],
)
def test_other_sizes_take_the_same_path(model: nn.Module, example: Tensor) -> None:
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(nk.StatisticsError, match="inputs of every size"):
        nk.fold(model, example)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_parts_of_the_output_that_forward_drops() -> None:
    class Two(Block):
        def forward(self, x: Tensor) -> Any:
            y = self.conv(x)
            return self.bn(y), y

    with pytest.warns(UserWarning, match="fold changed nothing"):
        nk.fold(Two(), torch.randn(2, 3, 8, 8), forward=lambda model, x: model(x)[0])


def test_residuals_that_may_be_none() -> None:
    class Maybe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nk.BatchNorm2d(3, act="relu")

        def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
            y: Tensor = self.bn(self.conv(x), residual)
            return y

    model, x = Maybe().eval(), torch.randn(2, 3, 4, 4)
    expected, added = model(x), model(x, x)
    assert len(nk.fold(model, x).changed) == 1
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x, x), added, rtol=1e-5, atol=1e-5)


def test_for_tools_with_a_residual() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nk.GroupNorm(2, 4, act="relu")

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z: Tensor = self.norm(y, residual=y)
            return z

    model, x = Adds().eval(), torch.randn(2, 3, 4, 4)
    expected = model(x)
    handle = nk.deploy(model, x, for_tools=True)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert [row.name for row in handle.skipped] == ["norm"]
