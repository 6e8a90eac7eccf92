"""Rules about statistics, γ and β, and arguments: each finds its fault, and not a look-alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import normkit as nk
from tests.doctor.nets import batches, find, net, one, same, state, trained


def test_nk101_statistics_that_never_moved() -> None:
    model = net()
    model[4].reset_running_stats()
    found = one(model, "NK101", "error", "4", train=batches())
    before = state(model)
    handle = found.mend()
    assert not find(model, "NK101")
    assert float(model[4].running_mean.abs().sum()) > 0
    handle.undo()
    assert same(model, before)


def test_nk101_is_a_note_before_training_and_does_not_ask_the_count() -> None:
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    one(fresh, "NK101", "note", "1")
    nn.init.normal_(fresh[1].weight, 1.0, 0.02)  # as generators are made
    one(fresh, "NK101", "note", "1")
    model = net()
    assert int(model[1].num_batches_tracked) == 0
    assert not find(model, "NK101")


def test_nk102_statistics_that_are_not_finite_or_negative() -> None:
    model = net()
    model[1].running_mean[2] = float("nan")
    model[4].running_var[:2] = -0.1
    found = one(model, "NK102", "error", "1", "4", train=batches())
    assert found.value == 3
    handle = found.mend()
    assert not find(model, "NK102")
    handle.undo()
    assert find(model, "NK102")


def test_nk103_momentum_zero_is_mended() -> None:
    model = net(momentum=0.0)
    found = one(model, "NK103", "warning", "1", "4", train=batches())
    before = state(model)
    handle = found.mend()
    assert model[1].momentum == 0.1
    assert not same(model, before)
    assert not find(model, "NK103")
    handle.undo()
    assert model[1].momentum == 0
    assert same(model, before)


def test_nk103_is_the_cause_where_statistics_never_moved() -> None:
    model = net(momentum=0.0)
    model[1].reset_running_stats()
    one(model, "NK103", "warning", "1", "4")
    assert not find(model, "NK101")


def test_nk103_leaves_frozen_layers_and_counts_instance_norm_without_momentum() -> None:
    model = net(momentum=0.0)
    nk.freeze(model)
    assert not find(model, "NK103")
    layer = nn.InstanceNorm2d(2, momentum=None, track_running_stats=True)  # type: ignore[arg-type]
    layer(torch.randn(3, 2, 4, 4) + 5)
    assert not layer.running_mean.any()  # torch takes None for 0 there
    one(nn.Sequential(layer), "NK103", "warning", "0")


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nk.BatchNorm1d])
def test_nk105_averages_that_round_away(make: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(trained(make(16, momentum=0.01))).bfloat16()
    found = one(model, "NK105", "warning", "0")
    assert found.value is not None
    # As predicted, most variances stand still in a batch of 10 % more variance.
    with torch.no_grad():
        wanted = (1.1 * model[0].running_var.double()).sqrt()
        x = torch.randn(4000, 16, dtype=torch.float64)
        x = (x - x.mean(0)) / x.std(0) * wanted + model[0].running_mean.double()
    former = model[0].running_var.clone()
    model.train()(x.bfloat16())
    assert float((model[0].running_var == former).double().mean()) > 0.7
    before = state(model)
    parameter = model[0].weight
    handle = found.mend()
    assert model[0].running_var.dtype == torch.float32
    assert model[0].weight is parameter
    assert model(x.bfloat16()).dtype == torch.bfloat16
    assert not torch.equal(model[0].running_var, former.float())
    assert not find(model, "NK105")
    handle.undo()
    assert model[0].running_var.dtype == torch.bfloat16
    assert {k: v.dtype for k, v in before.items()} == {
        k: v.dtype for k, v in model.state_dict().items()
    }


def test_nk105_is_a_note_where_the_average_moves() -> None:
    one(net().half(), "NK105", "note", "1", "4")
    assert not find(net(), "NK105")


def test_nk106_dead_channels() -> None:
    model = net()
    with torch.no_grad():
        model[1].weight[0] = 0
        model[4].weight[:3] = 1e-6
    found = one(model, "NK106", "warning", "1", "4")
    assert found.value == pytest.approx(3 / 8)
    with torch.no_grad():
        model[4].weight.zero_()  # the last layer of a residual block when it is made
    one(model, "NK106", "note", "1")


def test_nk107_variance_below_eps() -> None:
    model = net()
    model[1].running_var[:2] = 1e-7
    found = one(model, "NK107", "note", "1")
    assert found.value == pytest.approx(2 / 16)
    model[1].running_var[:5] = 0
    one(model, "NK107", "warning", "1")
    model[1].reset_running_stats()
    model[1].eps = 2.0
    assert not find(model, "NK107")


def test_nk108_flag_off_with_buffers() -> None:
    model = net()
    model[1].track_running_stats = False
    images = torch.randn(16, 1, 8, 8)
    mean = model[1].running_mean.clone()
    model.train()(images)
    assert torch.equal(model[1].running_mean, mean)  # training does not move them
    with torch.no_grad():
        expected = model.eval()(images)
        model[1].running_mean.add_(1)
        assert not torch.allclose(model(images), expected)  # and evaluation uses them
        model[1].running_mean.sub_(1)
    found = one(model, "NK108", "warning", "1", train=batches())
    before = state(model)
    handle = found.mend()
    assert model[1].track_running_stats
    assert not find(model, "NK108")
    handle.undo()
    assert not model[1].track_running_stats
    assert same(model, before)
    model[1].reset_running_stats()
    model[1].running_mean.zero_()
    model[1].running_var.fill_(1)
    one(model, "NK108", "warning", "1")
    assert not find(model, "NK101")


def test_nk108_flag_on_without_buffers() -> None:
    model = net(track_running_stats=False)
    assert not find(model, "NK108")
    model[4].track_running_stats = True
    one(model, "NK108", "warning", "4")
    layer = nn.InstanceNorm2d(2)
    layer.track_running_stats = True
    with pytest.raises(RuntimeError):
        layer.eval()(torch.randn(2, 2, 4, 4))
    one(nn.Sequential(layer), "NK108", "error", "0")


def test_nk108_instance_norm_moves_in_evaluation() -> None:
    layer = nn.InstanceNorm2d(2, track_running_stats=True)
    layer.track_running_stats = False
    layer.eval()(torch.randn(3, 2, 4, 4) + 5)
    assert layer.running_mean is not None
    assert layer.running_mean.any()
    one(nn.Sequential(layer), "NK108", "note", "0")


def test_nk109_swapped_arguments() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, 0.1, 1e-5))
    found = one(model, "NK109", "warning", "0")
    assert not find(model, "NK120")
    handle = found.mend()
    assert (model[0].eps, model[0].momentum) == (1e-5, 0.1)
    assert not find(model, "NK109")
    handle.undo()
    assert (model[0].eps, model[0].momentum) == (0.1, 1e-5)


def test_nk109_of_a_trained_model_leaves_eps_to_its_weights() -> None:
    model = net(eps=0.1, momentum=1e-5)
    one(model, "NK109", "warning", "1", "4").mend()
    assert (model[1].eps, model[1].momentum) == (0.1, 0.1)


def test_nk109_momentum_given_as_eps() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, 0.8))
    found = one(model, "NK109", "warning", "0")
    assert "momentum=0.2" in found.do
    variances = net(eps=0.8)
    variances[1].running_var.fill_(0.5)
    assert find(variances, "NK109")
    assert not find(variances, "NK107")  # follows from it
    found.mend()
    assert model[0].eps == 1e-5
    assert not find(net(eps=1e-3), "NK109")


def test_nk120_average_too_slow() -> None:
    model = net(momentum=1e-4)
    found = one(model, "NK120", "warning", "1", "4", train=batches())
    handle = found.mend()
    assert model[1].momentum == 0.1
    handle.undo()
    assert model[1].momentum == 1e-4
    nk.recalibrate(model, batches(), progress=False)
    one(model, "NK120", "note", "1", "4", train=batches())  # its statistics are right
    for layer in (model[1], model[4]):
        layer.num_batches_tracked.fill_(100_000)
    one(model, "NK120", "note", "1", "4")
    assert not find(net(momentum=1e-3), "NK120")
    one(nn.Sequential(nn.BatchNorm1d(4, momentum=3e-4)), "NK120", "note", "0")  # fresh


def test_nk128_tiny_eps() -> None:
    model = nn.Sequential(nn.LayerNorm(4, eps=0.0))
    x = torch.ones(2, 4)
    assert model(x).isnan().all()
    handle = one(model, "NK128", "warning", "0").mend()
    assert not model(x).any()
    handle.undo()
    assert model[0].eps == 0
    half = nn.Sequential(nn.LayerNorm(4, eps=1e-12)).half()
    y = x.half().requires_grad_()
    half(y)[:, 0].sum().backward()
    assert y.grad is not None
    assert not y.grad.isfinite().all()
    one(half, "NK128", "warning", "0")
    assert half.eval()(y).isfinite().all()
    one(half, "NK128", "note", "0")
    assert not find(nn.Sequential(nn.LayerNorm(4, eps=1e-12)), "NK128")
    assert not find(nn.Sequential(nn.LayerNorm(4)).half(), "NK128")
