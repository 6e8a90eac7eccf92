"""Structures that look like the faults of the NK1xx rules, and are not; and an ε of 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from tests.doctor.nets import find, net, one, trained


class PreActivation(nn.Module):
    """The bias also goes past the normalization."""

    def __init__(self, *, past: bool, traceable: bool = True) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.past, self.traceable = past, traceable

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        if not self.traceable and x.sum() > 1e9:
            return h
        y = F.relu(self.norm(h))
        return h + y if self.past else y


def images(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(count)]


def moves(model: nn.Module, bias: Tensor, x: Tensor) -> bool:
    """Return whether the output in training depends on a bias."""
    step = torch.arange(len(bias))
    with torch.no_grad():
        before = model.train()(x)
        bias.add_(step)
        after = model(x)
        bias.sub_(step)
    return not torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"train": images()}], ids=["model", "batches"])
def test_nk115_counts_all_uses_of_a_tensor(options: Any) -> None:
    for past in (True, False):
        model = PreActivation(past=past)
        assert moves(model, model.stem.bias, images()[0]) is past
        assert bool(find(model, "NK115", **options)) is not past
        # Other uses of what a module made are only known from a trace.
        assert not find(PreActivation(past=past, traceable=False), "NK115", **options)


class Twice(nn.Module):
    """Normalizes the output of a normalization, which may go past the second one too."""

    def __init__(self, *, past: bool, traceable: bool) -> None:
        super().__init__()
        self.first, self.second = trained(nn.BatchNorm2d(3)), trained(nn.BatchNorm2d(3))
        self.past, self.traceable = past, traceable

    def forward(self, x: Tensor) -> Tensor:
        if not self.traceable and x.sum() > 1e9:
            return x
        h = self.first(x)
        y: Tensor = self.second(h)
        return h + y if self.past else y


def test_nk114_warns_where_the_first_feeds_nothing_else() -> None:
    one(Twice(past=False, traceable=True), "NK114", "warning", "second")
    one(Twice(past=True, traceable=True), "NK114", "note", "second")
    one(Twice(past=True, traceable=False), "NK114", "note", "second", train=images())
    row = nn.Sequential(trained(nn.BatchNorm2d(3)), trained(nn.BatchNorm2d(3)))
    model = nn.Sequential(row, Twice(past=True, traceable=False))  # cannot be traced
    assert find(model, "NK114")[0].places == ("0.1",)
    assert find(model, "NK114")[0].severity == "warning"


@pytest.mark.parametrize("length", [6, 10])
def test_nk115_of_a_linear_layer_whose_bias_lies_along_another_axis(length: int) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(length))
    sequences = [torch.randn(16, length, 6) for _ in range(4)]
    assert moves(model, model[0].bias, sequences[0])
    assert not find(model, "NK115", train=sequences)
    assert bool(find(model, "NK115")) is (length == 6)  # without batches, as if of (N, C)
    instance = nn.Sequential(nn.Linear(6, 6), nn.InstanceNorm1d(6))
    assert moves(instance, instance[0].bias, torch.randn(16, 6, 6))
    assert not find(instance, "NK115")


def test_nk115_leaves_layers_held_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    assert find(model, "NK115")
    model[1].eval()
    assert not find(model, "NK115")
    y = model(torch.randn(4, 4)).sum()
    y.backward()
    assert bool((model[0].bias.grad.abs() > 0.1).all())  # it trains


class TwoNames(nn.Module):
    def __init__(self, *, calls: int, kind: str = "like") -> None:
        super().__init__()
        self.first = self.second = trained(nn.BatchNorm1d(8))
        self.calls, self.kind = calls, kind

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:  # cannot be traced
            return x
        y: Tensor = self.first(x[::2])
        if self.calls == 1:
            return y
        other = x[1::2] if self.kind == "like" else 5 + 3 * x[1::2]
        return y - self.second(other)


def test_nk113_two_names_and_calls_that_are_not_known() -> None:
    batches = [torch.randn(64, 8) for _ in range(20)]
    for calls in (1, 2):
        found = one(TwoNames(calls=calls), "NK113", "note", "first", "second")
        assert "not known" in found.says
    assert not find(TwoNames(calls=1), "NK113", train=batches)
    one(TwoNames(calls=2), "NK113", "note", "first", "second", train=batches)
    one(TwoNames(calls=2, kind="other"), "NK113", "warning", "first", "second", train=batches)


def test_nk118_names_the_parameters_that_there_are() -> None:
    for options, words in (
        ({}, "a γ and a β for"),
        ({"bias": False}, "a γ for"),
        ({"elementwise_affine": False}, "that size only."),
    ):
        found = one(nn.Sequential(nn.LayerNorm([4, 5, 6], **options)), "NK118", "note", "0")
        assert words in found.says


def test_nk124_leaves_gradual_unfreezing() -> None:
    model = net()

    def sgd(*zero: nn.Module) -> torch.optim.Optimizer:
        still = {p for part in zero for p in part.parameters()}
        others = [p for p in model.parameters() if p not in still]
        return torch.optim.SGD([{"params": list(still), "lr": 0.0}, {"params": others}], lr=0.1)

    assert not find(model, "NK124", optimizer=sgd(model[:5]))
    one(model, "NK124", "warning", "1", "4", optimizer=sgd(model[1], model[4]))


# Layer, an input without variance, and what is said.
NO_EPS = [
    (nn.LayerNorm(8, eps=0.0), torch.ones(2, 8), "warning"),
    (nn.GroupNorm(2, 8, eps=0.0), torch.ones(2, 8, 4), "warning"),
    (nn.RMSNorm(8, eps=0.0), torch.zeros(2, 8), "warning"),
    (nk.InstanceNorm1d(8, eps=0.0), torch.ones(2, 8, 4), "warning"),
    (nn.InstanceNorm1d(8, eps=0.0), torch.ones(2, 8, 4), "note"),
]


@pytest.mark.parametrize(("layer", "x", "severity"), NO_EPS, ids=lambda one: type(one).__name__)
def test_nk128_says_what_becomes_of_an_input_without_variance(
    layer: nn.Module, x: Tensor, severity: str
) -> None:
    assert bool(layer(x).isnan().all()) is (severity == "warning")
    found = one(nn.Sequential(layer), "NK128", severity, "0")
    assert ("gives NaN" in found.says) is (severity == "warning")
    found.mend()
    assert layer(x).isfinite().all()


def test_nk128_batch_normalization_without_eps_cannot_train() -> None:
    model, x = nn.Sequential(trained(nn.BatchNorm1d(8, eps=0.0))), torch.ones(4, 8)
    with pytest.raises(ValueError, match="eps"):
        model.train()(x)
    assert "ValueError" in one(model, "NK128", "warning", "0").says
    assert model.eval()(x).isfinite().all()
    one(model, "NK128", "note", "0")
    model[0].running_mean[0], model[0].running_var[0] = 1, 0
    assert model(x)[:, 0].isnan().all()
    assert "variance 0 gives NaN" in one(model, "NK128", "warning", "0").says
    frozen = nn.Sequential(nk.FrozenBatchNorm2d(8, eps=0.0))
    assert frozen(torch.zeros(2, 8, 4, 4)).isfinite().all()
    assert not find(frozen, "NK128")
