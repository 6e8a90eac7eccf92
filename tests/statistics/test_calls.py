"""Layers that one pass calls several times: each call told apart, and named where they differ."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.statistics.measuring.calls import MAX_CALLS

SOURCES = [nn, nk]


class Shared(nn.Module):
    """One layer for each of several scales of the input; a batch says how many."""

    def __init__(self, layer: nn.Module, scales: list[tuple[float, float]]) -> None:
        super().__init__()
        self.norm = layer
        self.scales = scales

    def forward(self, x: Tensor) -> Tensor:
        levels = self.scales[: 2 + len(x) % 2] if len(self.scales) == 3 else self.scales
        return torch.stack([self.norm(a * x + b) for a, b in levels]).sum(0)


def batches(*shape: int, sizes: tuple[int, ...] = (15, 16, 9, 20)) -> list[Tensor]:
    torch.manual_seed(0)
    return [3 + torch.randn(n, *shape) for n in sizes]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("name", "shape"),
    [("BatchNorm1d", (4,)), ("BatchNorm2d", (4, 5, 5)), ("InstanceNorm2d", (4, 5, 5))],
)
def test_gap_of_each_call(source: Any, name: str, shape: tuple[int, ...]) -> None:
    """Against float64 on all data, also where the number of calls varies between batches."""
    options = {"track_running_stats": True} if name == "InstanceNorm2d" else {}
    model = Shared(getattr(source, name)(4, **options), [(1, 0), (4, 6), (0.125, -3)])
    data = batches(*shape)
    nk.recalibrate(model, data, samples=None, progress=False)
    result = nk.consistency(model, data, samples=None, progress=False)
    mean, var = (t.double() for t in (model.norm.running_mean, model.norm.running_var))
    for call, (a, b) in enumerate(model.scales, 1):
        x = torch.cat([a * x + b for x in data if call < 3 or len(x) % 2]).double()
        rest = [0, *range(2, x.dim())]
        variance = x.var((2, 3)).mean(0) if options else x.var(rest)
        step = ((mean - x.mean(rest)).square() / (variance + 1e-5)).mean().sqrt()
        ratio = ((var + 1e-5) / (variance + 1e-5)).log().square().mean().sqrt().exp()
        gap = result.calls["norm"][call]
        assert gap.mean == pytest.approx(step.item(), rel=1e-4)
        assert gap.variance == pytest.approx(ratio.item(), rel=1e-4)
    assert not result.layers["norm"].matters
    assert result.first_mismatch == "norm"
    assert [one.name for one in result.shared] == ["norm"]
    assert result.shared[0].calls == result.calls["norm"]
    text = repr(result)
    assert "called several times in a pass" in text
    assert "in call 3" in text and "DomainBatchNorm" in text and "GroupNorm" in text


@pytest.mark.parametrize("source", SOURCES)
def test_calls_alike_are_not_named(source: Any) -> None:
    """A siamese network's halves: the same data through one layer."""
    model = Shared(source.BatchNorm1d(4), [(1, 0), (1, 0.01)])
    handle = nk.recalibrate(model, batches(4), samples=None, progress=False)
    result = nk.consistency(model, batches(4), samples=None, progress=False)
    assert handle.shared == () and result.shared == ()
    assert set(result.calls["norm"]) == {1, 2}
    assert result.first_mismatch is None


@pytest.mark.parametrize("source", SOURCES)
def test_recalibrate_names_shared_layer(source: Any) -> None:
    model = nn.Sequential(Shared(source.BatchNorm1d(4), [(1, 0), (4, 6)]), source.BatchNorm1d(4))
    for layerwise in (False, True):
        with nk.recalibrate(model, batches(4), layerwise=layerwise, progress=False) as handle:
            assert [one.name for one in handle.shared] == ["0.norm"]
            assert "called several times" in repr(handle)
            assert [row["layer"] for row in handle.summary()["shared"]] == ["0.norm"]
            assert handle.layers["0.norm"].count == 2 * 60


def test_one_call_per_pass_costs_nothing() -> None:
    result = nk.consistency(nk.BatchNorm1d(4), batches(4), progress=False)
    assert result.calls == {}


def test_domain_for_each_call() -> None:
    """The way out that is named: the same model with a bank for each call agrees."""

    class Domains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nk.DomainBatchNorm1d(4, domains=2)

        def forward(self, x: Tensor) -> Tensor:
            outs = []
            for k, scale in enumerate((1, 4)):
                self.norm.domain = k
                outs.append(self.norm(scale * x))
            return outs[0] + outs[1]

    model = Domains()
    nk.recalibrate(model, batches(4), progress=False)
    result = nk.consistency(model, batches(4), progress=False)
    assert result.first_mismatch is None and result.shared == () and result.calls == {}


class Recurrent(nn.Module):
    """A layer that normalizes what it made itself, ``times`` over."""

    def __init__(self, layer: nn.Module, times: int, gain: float) -> None:
        super().__init__()
        self.norm, self.times = layer, times
        self.linear = nn.Linear(8, 8, dtype=torch.float64)
        torch.manual_seed(1)
        nn.init.orthogonal_(self.linear.weight, gain)
        nn.init.uniform_(layer.weight, 0.5, 1.5)  # type: ignore[arg-type]
        nn.init.normal_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = torch.tanh(self.linear(self.norm(x))) * 2
        return x


def _deviation(model: Recurrent, x: Tensor) -> float:
    """How far the statistics are from those of all inputs that evaluation gives the layer."""
    inputs: list[Tensor] = []
    with model.norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0])):
        model.eval()(x)
    values = torch.cat(inputs).detach()
    mean: Any = model.norm.running_mean
    return float(((mean - values.mean(0)) / values.std(0)).abs().max())


@pytest.mark.parametrize("source", SOURCES)
def test_layer_that_feeds_itself(source: Any) -> None:
    """Passes go on until its statistics reproduce themselves."""
    data = [1 + 3 * one.double() for one in batches(8, sizes=(50,) * 20)]
    for times in (2, 3):
        model = Recurrent(source.BatchNorm1d(8).double(), times, gain=1.0)
        result = nk.recalibrate(model, data, samples=None, layerwise=True, progress=False)
        assert 2 < result.passes < 10
        assert _deviation(model, torch.cat(data)) < 3e-3


class Alternating(nn.Module):
    """A larger mean makes that of the layer's second input smaller, and the reverse."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(20 * self.norm(x))
        return y


@pytest.mark.parametrize("source", SOURCES)
def test_statistics_that_do_not_settle_are_named(source: Any) -> None:
    model = Alternating(source.BatchNorm1d(8).double())
    data = [one.double() for one in batches(8, sizes=(50,) * 20)]
    with pytest.warns(UserWarning, match=r"still move after 22 passes, .*: norm by \d+\.\d"):
        nk.recalibrate(model, data, samples=None, layerwise=True, progress=False)


def test_many_calls_are_bounded() -> None:
    scales = [(1.0, 0.0)] * (MAX_CALLS + 20) + [(1.0, 40.0)]
    model = Shared(nk.BatchNorm1d(4), scales)
    result = nk.consistency(model, batches(4), progress=False)
    assert list(result.calls["norm"]) == list(range(1, MAX_CALLS + 1))
    assert f"in call {MAX_CALLS} and later ones" in repr(result)


@pytest.mark.parametrize("source", SOURCES)
def test_empty_calls_keep_their_number(source: Any) -> None:
    """No proposals at a level: the calls behind it are still the second and third."""

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = source.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            first = x[: 0 if len(x) % 2 else len(x)]
            return self.norm(first).sum(0) + self.norm(10 + 5 * x)

    result = nk.consistency(Levels(), batches(4), samples=None, progress=False)
    x = torch.cat([10 + 5 * x for x in batches(4)]).double()
    expected = (x.mean(0).square() / (x.var(0) + 1e-5)).mean().sqrt().item()
    assert result.calls["norm"][2].mean == pytest.approx(expected, rel=1e-4)


def test_single_value_in_a_call() -> None:
    """One value has no variance, and names nobody."""
    model = Shared(nn.BatchNorm2d(4), [(1, 0), (1, 0)])
    result = nk.consistency(model, batches(4, 1, 1, sizes=(1, 8, 8)), progress=False)
    assert result.samples == 16 and any("left out" in note for note in result.notes)
    assert all(math.isfinite(gap.mean) for gap in result.calls["norm"].values())
