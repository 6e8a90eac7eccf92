"""Models that do unusual things, each of which once gave wrong statistics or an obscure error."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import normkit as nk
from normkit.errors import OptionError, StatisticsError
from normkit.statistics import StatsSpec, stats_spec
from tests.statistics.test_preserve import IMAGES, STATISTICS, assert_same, snapshot

BATCHES = IMAGES.split(10)


class Calls(nn.Module):
    """Two layers and a forward that is given."""

    def __init__(self, forward: Any, source: Any = nn) -> None:
        super().__init__()
        self.a, self.b = source.BatchNorm2d(3), source.BatchNorm2d(3)
        self.does = forward

    def forward(self, x: Tensor, **more: Any) -> Tensor:
        out: Tensor = self.does(self, x, **more)
        return out


def expect(layer: Any, *given: Tensor) -> None:
    x = torch.cat(given).double()
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2, 3)).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.running_var, x.var((0, 2, 3)).float(), rtol=1e-4, atol=1e-5)


def test_input_by_keyword_after_residual() -> None:
    model = Calls(lambda m, x: m.a(residual=100 * x, input=x), nk)
    nk.recalibrate(model, BATCHES)
    expect(model.a, IMAGES)


@pytest.mark.parametrize("source", [nn, nk])
def test_forward_called_without_hooks(source: Any) -> None:
    """It goes on by what it remembers, and the layer behind sees just that."""
    model = Calls(lambda m, x: m.b(m.a.forward(x)), source)
    model.a.running_var.fill_(4.0)
    found = nk.recalibrate(model, BATCHES)
    assert [row.name for row in found.skipped] == ["a"]
    assert torch.equal(model.a.running_var, torch.full((3,), 4.0))
    expect(model.b, copy.deepcopy(model.a).eval()(IMAGES).detach())


@pytest.mark.parametrize("source", [nn, nk])
def test_gradient_inside_forward_through_shared_layer(source: Any) -> None:
    def force(m: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(m.a(2 * m.a(x)).pow(3).sum(), x)
        return m.b(slope)  # type: ignore[no-any-return]

    model = Calls(force, source)
    found = nk.recalibrate(model, BATCHES)
    assert found.layers["a"].count == 2 * 60 * 36
    assert found.layers["b"].count == 60 * 36


def test_shared_buffers_are_left() -> None:
    """No statistics are right for two layers."""
    model = Calls(lambda m, x: m.b(m.a(x)))
    model.b.running_mean, model.b.running_var = model.a.running_mean, model.a.running_var
    before = snapshot(model)
    with pytest.raises(StatisticsError, match="in the same tensor as b"):
        nk.recalibrate(model, BATCHES)
    assert_same(before, snapshot(model))


def test_batch_with_empty_first_tensor() -> None:
    model = Calls(lambda m, x, boxes: m.b(m.a(x)))
    found = nk.recalibrate(model, [{"boxes": torch.zeros(0, 4), "x": x} for x in BATCHES])
    assert found.samples == 60


class Own(nn.Module):
    """A third party's layer, without ε, whose moments are parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.v = nn.Parameter(torch.full((channels,), 100.0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mu) / self.v.sqrt()


@stats_spec.register(Own)
def _(layer: Own) -> StatsSpec:
    return StatsSpec("mu", "v")


def test_statistics_as_parameters() -> None:
    model = Own(3)
    x = IMAGES.mean((2, 3))
    before = model.mu
    nk.recalibrate(model, x.split(10))
    assert model.mu is before and isinstance(model.mu, nn.Parameter)
    torch.testing.assert_close(model.mu.data, x.mean(0))


def test_infinite_variance_ratio() -> None:
    model = Own(1)
    found = nk.recalibrate(model, [torch.ones(4, 1)] * 3)
    assert found.shifts[""].variance == float("inf")
    assert "not finite" in repr(found)


def test_labels_outside_output_classes() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8))
    batches = [(torch.randn(16, 4), torch.arange(16)) for _ in range(3)]
    assert nk.consistency(model, batches).output.loss is None
    within = [(x, labels % 8 - 100 * (labels == 3)) for x, labels in batches]
    for _, labels in within:
        labels[labels < 0] = -100
    assert nk.consistency(model, within).output.loss is not None


def test_buffers_written_by_forward_are_restored() -> None:
    """Observers of quantization watch in evaluation mode too."""

    class Observed(nn.Module):
        seen: Tensor
        shaped: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("shaped", torch.zeros(0))
            self.register_buffer("exchanged", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            self.shaped.resize_(3).fill_(len(x))
            self.exchanged = self.seen * 2
            out: Tensor = self.norm(x)
            return out

    model = Observed()
    before = snapshot(model)
    assert nk.recalibrate(model, BATCHES).samples == 60
    assert_same(before, snapshot(model), but={f"norm.{what}" for what in STATISTICS})
    before = snapshot(model)
    nk.consistency(model, BATCHES)
    assert_same(before, snapshot(model))


def test_scripted_submodule() -> None:
    part = torch.jit.script(nn.Sequential(nn.BatchNorm2d(3)))
    found = nk.recalibrate(nn.Sequential(part, nn.BatchNorm2d(3)), BATCHES)
    assert [(row.name, row.why) for row in found.skipped] == [("0.0", "scripted")]
    assert list(found.layers) == ["1"]


@pytest.mark.parametrize("where", ["batches", "forward"])
@pytest.mark.parametrize("inner", [nk.recalibrate, nk.consistency])
def test_nested_measurement_is_rejected(where: str, inner: Any) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        if where == "forward":
            inner(m, BATCHES)
        return m.b(m.a(x))  # type: ignore[no-any-return]

    model = Calls(forward)

    def batches() -> Any:
        for i, x in enumerate(BATCHES):
            if where == "batches" and i == 3:
                inner(model, BATCHES)
            yield x

    before = snapshot(model)
    with pytest.raises(StatisticsError, match="one measurement of a model at a time"):
        nk.recalibrate(model, batches())
    assert_same(before, snapshot(model))
    model.does = lambda m, x: m.b(m.a(x))
    assert nk.recalibrate(model, BATCHES).samples == 60


def test_statistics_too_large_for_dtype() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).half()
    before = snapshot(model)
    with pytest.raises(StatisticsError, match=r"torch\.float16, at 0"):
        nk.recalibrate(model, [(1000 * x).half() for x in BATCHES])
    assert_same(before, snapshot(model))


def evaluating(model: nn.Module, batch: Tensor) -> None:
    model.eval()(batch)


def test_frozen_layer_restores_requested_mode() -> None:
    """Also where a function that evaluates has asked for another meanwhile."""
    model = Calls(lambda m, x: m.b(m.a(x)))
    nk.freeze(model.a)
    nk.recalibrate(model, BATCHES, forward=evaluating)
    with nk.batch_statistics(model):
        evaluating(model, IMAGES)
    nk.unfreeze(model)
    assert all(layer.training for layer in model.modules())


def test_layer_frozen_during_measurement_stays_frozen() -> None:
    model = Calls(lambda m, x: m.b(m.a(x)))
    with nk.batch_statistics(model):
        nk.freeze(model.a)
    assert [model.training, model.a.training, model.b.training] == [True, False, True]
    nk.unfreeze(model)
    assert model.a.training


def test_layer_called_in_one_mode_only() -> None:
    """A layer that only one of the modes reaches."""
    model = Calls(lambda m, x: m.b(m.a(x)) if m.a(x).abs().mean() < 1 else m.a(x))
    found = nk.consistency(model, [2 * x for x in BATCHES])
    assert "b" in found.layers and "b" not in found.inherited
    assert "b (nn.BatchNorm2d)" in repr(found)


@pytest.mark.parametrize(
    ("batches", "says"),
    [([IMAGES / 0], "finite values"), ([IMAGES[:1, :, :1, :1]], "at least two values")],
)
def test_consistency_without_valid_statistics(batches: list[Tensor], says: str) -> None:
    with pytest.raises(StatisticsError, match=says):
        nk.consistency(Calls(lambda m, x: m.a(x)), batches)


def test_sampler_whose_copy_fails() -> None:
    class Sampler(torch.utils.data.Sampler[int]):
        def __iter__(self) -> Any:
            return iter(range(60))

        def __deepcopy__(self, memo: Any) -> Any:
            raise ValueError("there is only one of it")

    loader = torch.utils.data.DataLoader(IMAGES, 10, sampler=Sampler())  # type: ignore[arg-type]
    assert nk.recalibrate(Calls(lambda m, x: m.a(x)), loader).samples == 60


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_interval_confidence_out_of_range(confidence: float) -> None:
    found = nk.recalibrate(Calls(lambda m, x: m.a(x)), BATCHES)
    with pytest.raises(OptionError, match="confidence between 0 and 1"):
        found.interval("a", confidence)


class Positive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def test_parametrized_scale_is_frozen() -> None:
    """With all that it is computed from."""
    model = nn.Sequential(nn.BatchNorm2d(3))
    parametrize.register_parametrization(model[0], "weight", Positive())
    handle = nk.freeze(model, statistics=False)
    assert [row.name for row in handle.changed] == ["0"] and not handle.skipped
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_consistency_restores_random_state() -> None:
    """Batches that are drawn while it goes over them."""
    model = Calls(lambda m, x: m.b(m.a(x)))
    before = snapshot(model)
    nk.consistency(model, (x + torch.rand(()) for x in BATCHES))
    assert_same(before, snapshot(model))


def test_quantization_observers_are_restored() -> None:
    """They write into their buffers past PyTorch's count of writes."""
    observer = torch.ao.quantization.default_fused_act_fake_quant()
    model = nn.Sequential(observer, nn.BatchNorm2d(3))
    model(IMAGES)
    before = snapshot(model)
    nk.recalibrate(model, [3 * x for x in BATCHES]).undo()
    assert_same(before, snapshot(model))
