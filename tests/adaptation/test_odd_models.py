"""adapt and tent on layers of other formulas, and on models and optimizers they cannot train."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.errors import OptionError, StatisticsError
from normkit.statistics import StatsSpec, stats_spec
from tests.adaptation.snapshot import state


class Registered(nn.Module):
    """Third-party layer; its subclasses have formulas of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mu", torch.zeros(3))
        self.register_buffer("v", torch.ones(3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.formula(x.movedim(1, -1)).movedim(-1, 1)

    def formula(self, x: Tensor) -> Tensor:
        return ((x - self.mu) / self.v.sqrt()).relu() * 2 + 1


class OtherEpsilon(Registered):
    def formula(self, x: Tensor) -> Tensor:
        return (x - self.mu) / (self.v + 1e-3).sqrt()


class EpsilonOutside(Registered):
    def formula(self, x: Tensor) -> Tensor:
        return (x - self.mu) / (self.v.sqrt() + 1e-3)


class NotCentred(Registered):
    def formula(self, x: Tensor) -> Tensor:
        return x / self.v.sqrt()


class Unlike(Registered):
    def formula(self, x: Tensor) -> Tensor:
        raise ValueError("never fits")


@stats_spec.register(Registered)
def _(layer: Registered) -> StatsSpec:
    return StatsSpec("mu", "v")


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4), (6, 3, 4, 5), (6, 3, 2, 2, 2)])
def test_a_registered_layer_of_the_formula_is_adapted(shape: tuple[int, ...]) -> None:
    layer, x = Registered().eval(), 0.03 * torch.randn(shape) + 1
    before = state(layer)
    trained = copy.deepcopy(layer)
    dims = [0, *range(2, x.dim())]
    trained.mu, trained.v = x.mean(dims), x.var(dims, correction=0)
    with nk.adapt(layer, 0):
        assert layer.calls == 0  # tried on a copy
        torch.testing.assert_close(layer(x), trained(x), atol=1e-4, rtol=1e-4)
    layer.calls.zero_()  # type: ignore[operator]
    assert state(layer) == before


OTHERS: dict[type[Registered], str] = {
    OtherEpsilon: "another formula, or another ε",
    EpsilonOutside: "another formula, or another ε",
    NotCentred: "another formula, or another ε",
    Unlike: "cannot be tried: ValueError",
}


@pytest.mark.parametrize("cls", OTHERS)
def test_layers_of_other_formulas_are_left_and_told(cls: type[Registered]) -> None:
    model = nn.Sequential(cls(), nn.BatchNorm1d(3)).eval()
    before = state(model)
    with nk.adapt(model, 0) as handle:
        assert [row.name for row in handle.changed] == ["1"]
        assert OTHERS[cls] in handle.skipped[0].why
    assert state(model) == before
    with pytest.raises(StatisticsError, match=r"batches=stream"):
        nk.adapt(model[0])
    if cls is not Unlike:
        x = 0.03 * torch.randn(64, 3) + 1
        with nk.adapt(model[0], 0, batches=[x]):
            torch.testing.assert_close(model[0].mu, x.mean(0))


def classifier(*first: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*first, nn.Flatten(), nn.LazyLinear(5)).eval()


IMAGES = torch.randn(8, 4, 5, 5)


def test_tent_tells_where_statistics_stay() -> None:
    model = classifier(nk.SwitchableNorm2d(4), nn.BatchNorm2d(4))
    model(IMAGES)
    with nk.tent(model) as handle:
        rows = {row.name: row.note for row in handle.changed}
    assert rows == {
        "0": "γ and β trained; statistics as remembered: normalizes by its input beside its "
             "running statistics",
        "1": "each batch, γ and β trained",
    }  # fmt: skip
    model = classifier(nk.SwitchableNorm2d(4))
    model(IMAGES)
    with nk.tent(model) as handle:
        assert "statistics as remembered" in handle.changed[0].note


def test_train_within_the_block_keeps_dropout_off() -> None:
    model = classifier(nn.BatchNorm2d(4), nn.Dropout(0.9))
    model(IMAGES)
    compiled = torch.compile(model, backend="eager")
    for change in (nk.adapt, nk.tent):
        before = state(model)
        with change(model), torch.no_grad():
            expected = model(IMAGES)
            model.train()
            y = model(IMAGES)
            assert y.abs().max() < 2 * expected.abs().max()
            if change is nk.adapt:
                assert torch.equal(y, expected)
                model.train()
                torch.testing.assert_close(compiled(IMAGES), expected)
        assert state(model) == before


class Without(nn.Module):
    """Classifier that computes one of its two normalizations, or both, without gradients."""

    def __init__(self, all_: bool) -> None:
        super().__init__()
        self.all = all_
        self.first, self.second, self.end = nn.BatchNorm2d(4), nn.LayerNorm(100), nn.Linear(100, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.first(x).flatten(1)
            if self.all:
                return self.end(self.second(x))
        return self.end(self.second(x))


def test_gradients_that_do_not_arrive() -> None:
    model = Without(True).eval()
    with nk.tent(model), pytest.raises(StatisticsError, match="gradients reach γ and β"):
        model(IMAGES)
    model = Without(False).eval()
    with nk.tent(model) as handle:
        model(IMAGES)
        assert "2 of the γ and β got no gradient" in repr(handle)


def test_optimizers_that_cannot_train_them() -> None:
    model = Without(False)
    before = state(model)
    other = [nn.Parameter(torch.ones(1))]
    optimizers: list[tuple[Any, str]] = [
        (torch.optim.LBFGS, "LBFGS, which calls the model again"),
        (lambda p: torch.optim.SGD(other, lr=0.1), "none of them"),
    ]
    for optimizer, text in optimizers:
        with pytest.raises(OptionError, match=text):
            nk.tent(model, optimizer=optimizer)
        assert state(model) == before


@pytest.mark.parametrize(
    ("model", "fix"),
    [
        (nn.Sequential(nn.LazyBatchNorm2d(), nn.Flatten()), "run the model once"),
        (nn.Sequential(nn.LayerNorm(4), nn.LazyLinear(2)), "run the model once"),
        (nn.Sequential(nn.LayerNorm(4, device="meta")), "to_empty"),
    ],
)
def test_models_without_values(model: nn.Module, fix: str) -> None:
    with pytest.raises(StatisticsError, match=fix):
        nk.tent(model)


def test_the_warning_points_at_the_line_of_the_user() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4)).eval()
    with nk.adapt(model), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(8):
            model(torch.randn(16, 4) + i)
    assert [one.filename for one in caught] == [__file__]
