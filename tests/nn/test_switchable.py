"""Switchable normalization: the oracle, evaluation, and the tools that read its statistics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.core import reference

SHAPES = {
    "SwitchableNorm1d": (4, 3, 7),
    "SwitchableNorm2d": (4, 3, 5, 6),
    "SwitchableNorm3d": (2, 3, 3, 4, 2),
}


def _made(name: str, **options: Any) -> Any:
    layer = getattr(nk, name)(3, **options)
    for p in layer.parameters():
        nn.init.normal_(p)
    if layer.running_mean is not None:
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


def _truth(layer: Any, x: Tensor, *switches: Tensor, **options: Any) -> Tensor:
    return reference.switchable_norm(
        x, *(switches or (layer.mean_weight, layer.var_weight)), layer.weight, layer.bias, **options
    )


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_against_the_oracle(name: str, training: bool, offset: float) -> None:
    layer = _made(name).train(training)
    remembered = None if training else (layer.running_mean.clone(), layer.running_var.clone())
    x = (torch.randn(SHAPES[name]) * (0.1 if offset else 2) + offset).requires_grad_()
    if offset and not training:
        layer.running_mean.add_(offset)
        remembered = (layer.running_mean.clone(), layer.running_var.clone())
    leaves = [x, *layer.parameters()]
    y, truth = layer(x), _truth(layer, x, remembered=remembered)
    dy = torch.randn_like(y)
    limit = 1e-4 if offset else 1e-5
    torch.testing.assert_close(y, truth.float(), rtol=limit, atol=limit)
    got, right = torch.autograd.grad(y, leaves, dy), torch.autograd.grad(truth, leaves, dy)
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=limit * float(b.abs().max()))


def test_one_share_alone_is_that_normalization() -> None:
    """Softmax of a switch that is far ahead; each variance is the paper's, biased."""
    x = torch.randn(4, 3, 5, 5) * 3 + 1
    others = (
        nk.InstanceNorm2d(3),
        nk.GroupNorm(1, 3, affine=False),
        nk.BatchNorm2d(3, affine=False),
    )
    for k, other in enumerate(others):
        layer = nk.SwitchableNorm2d(3)
        with torch.no_grad():
            layer.mean_weight[k] = layer.var_weight[k] = 100.0
        torch.testing.assert_close(layer(x), other(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("average", ["exponential", "cumulative", "debiased"])
def test_running_averages_are_those_of_batch_normalization(average: str) -> None:
    ours, theirs = nk.SwitchableNorm2d(3, average=average), nk.BatchNorm2d(3, average=average)
    for i in range(3):
        x = torch.randn(4, 3, 5, 5) * (i + 1) + i
        ours(x), theirs(x)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(getattr(ours, name), buffer)
    ours(torch.empty(0, 3, 5, 5))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nk.SwitchableNorm2d(3), nn.ReLU())


def test_recalibrated_and_measured() -> None:
    model = _model()
    x = torch.randn(32, 2, 6, 6) * 2 + 1
    nk.recalibrate(model, [x[:16], x[16:]], progress=False)
    z = model[0](x).detach().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[1].running_mean.double(), z.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[1].running_var.double(), z.var(1), rtol=1e-3, atol=1e-4)
    assert "1" in str(nk.consistency(model, [x[:16], x[16:]], progress=False))
    before = copy.deepcopy(model.state_dict())
    with nk.batch_statistics(model):
        got = model.eval()(x)
    torch.testing.assert_close(got, model.train()(x))
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])  # of the last call


def test_frozen_and_back() -> None:
    model = _model()
    x = torch.randn(8, 2, 6, 6)
    model(x)
    before = model[1].running_mean.clone()
    handle = nk.freeze(model)
    assert [row.name for row in handle.changed] == ["1"]
    torch.testing.assert_close(model.train()(x), model.eval()(x))
    assert torch.equal(model[1].running_mean, before)
    nk.unfreeze(model)
    model.train()(x)
    assert not torch.equal(model[1].running_mean, before)
    handle = nk.scale_momentum(model, 4)
    assert model[1].momentum == pytest.approx(1 - 0.9**0.25)


def test_tools_that_fold_or_replace_leave_it() -> None:
    """In evaluation it is no scale and shift: what takes a batch normalization must not take it."""
    model = _model()
    assert not isinstance(model[1], nn.modules.batchnorm._BatchNorm)
    for convert in (
        nn.SyncBatchNorm.convert_sync_batchnorm,
        nk.SyncBatchNorm.convert_sync_batchnorm,
    ):
        assert type(convert(model)[1]) is nk.SwitchableNorm2d
    handle = nk.accelerate(model)  # with the ReLU behind it
    assert [(row.before, row.after) for row in handle.changed] == [(nk.SwitchableNorm2d,) * 2]
    handle.undo()
    with pytest.warns(UserWarning):
        handle = nk.convert(model, "sync")
    assert not handle.changed and [row.name for row in handle.skipped] == ["1"]
    with pytest.raises(nk.TypeMismatchError, match="batch normalization"):
        nk.FrozenBatchNorm2d.from_batch_norm(model[1])


def test_one_value_per_channel() -> None:
    layer = nk.SwitchableNorm2d(3)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(nk.ShapeError, match="more than 1 value per channel"):
        layer(torch.randn(1, 3, 1, 1))
    torch.testing.assert_close(layer.state_dict(), before)
    y = layer(torch.randn(4, 3, 1, 1))  # of one position each: its own variance is 0
    assert bool(torch.isfinite(y).all())
    with pytest.raises(nk.ShapeError, match="3D input"):
        nk.SwitchableNorm1d(3)(torch.randn(4, 3))
