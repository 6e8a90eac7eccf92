"""What goes wrong elsewhere, provoked on torch's own re-estimator and on ours.

The first half of each test shows that the failure is real; the second that it is not ours.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import normkit as nk
from tests.statistics.test_recalibrate import drifting, total


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nk.BatchNorm1d])
def test_update_bn_loses_variance_between_batches(make: Any) -> None:
    batches = drifting(size=256)
    truth = total(batches)[1]
    assert truth.mean() == pytest.approx(1.90, abs=0.02)
    model = nn.Sequential(make(3))
    update_bn(batches, model)
    assert model[0].running_var.mean() == pytest.approx(1.0, abs=0.05)  # half of it is gone
    nk.recalibrate(model, batches, samples=None)
    torch.testing.assert_close(model[0].running_var.double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nk.BatchNorm1d])
def test_frozen_layers(make: Any) -> None:
    model = nn.Sequential(make(3), make(3))
    model[0].running_mean.fill_(5.0)
    model.train()
    model[0].eval()
    update_bn(drifting(), model)
    assert model[0].running_mean.abs().max() < 1  # moved
    assert model[0].training  # and thawed
    model[0].running_mean.fill_(5.0)
    model[0].eval()
    nk.recalibrate(model, drifting())
    assert torch.equal(model[0].running_mean, torch.full((3,), 5.0))


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nk.BatchNorm1d])
def test_update_bn_interrupted(make: Any) -> None:
    def broken() -> Any:
        yield from drifting()[:3]
        raise KeyboardInterrupt

    model = nn.Sequential(make(3), nn.Dropout()).eval()
    model[0].running_mean.fill_(5.0)
    with pytest.raises(KeyboardInterrupt):
        update_bn(broken(), model)
    assert model.training and model[0].momentum is None  # and so it stays, dropout on
    assert not torch.equal(model[0].running_mean, torch.full((3,), 5.0))

    model = nn.Sequential(make(3), nn.Dropout()).eval()
    model[0].running_mean.fill_(5.0)
    with pytest.raises(KeyboardInterrupt):
        nk.recalibrate(model, broken())
    assert not model.training and model[0].momentum == 0.1
    assert torch.equal(model[0].running_mean, torch.full((3,), 5.0))


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nk.BatchNorm1d])
def test_unequal_batches(make: Any) -> None:
    """A last batch of two samples weighs as two samples."""
    batches = [torch.randn(510, 3), torch.randn(2, 3) + 100]
    model = nn.Sequential(make(3))
    update_bn(batches, model)
    assert model[0].running_mean.mean() == pytest.approx(50, abs=1)
    nk.recalibrate(model, batches)
    assert model[0].running_mean.mean() == pytest.approx(200 / 512, abs=0.2)


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nk.BatchNorm1d])
def test_dropout(make: Any) -> None:
    """It is on in update_bn, and so the variances it finds are not those of evaluation."""
    batches = [torch.ones(512, 3)] * 3
    model = nn.Sequential(nn.Dropout(), make(3))
    update_bn(batches, model)
    assert model[1].running_var.mean() == pytest.approx(1.0, abs=0.05)
    nk.recalibrate(model, batches)
    assert torch.equal(model[1].running_var, torch.zeros(3))
