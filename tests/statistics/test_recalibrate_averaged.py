"""`recalibrate` in place of `torch.optim.swa_utils.update_bn`, and where that one is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

import normkit as nk


def _drifting() -> list[Tensor]:
    """Forty batches of variance 1 whose mean moves by a little less than 3 from end to end."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.linspace(-1.6, 1.6, 40)
    return [step + torch.randn(64, 4, generator=generator) for step in steps]


def _trained() -> tuple[nn.Sequential, AveragedModel]:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    averaged = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in _drifting()[:10]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), (x.sum(1) > 0).long()).backward()
        optimizer.step()
        averaged.update_parameters(model)
    return model, averaged


def test_variance_between_batches_counts() -> None:
    batches = _drifting()
    truth = torch.cat(batches).double().var(0)
    _, averaged = _trained()
    update_bn(batches, averaged)
    theirs = averaged.module[0].running_var.double()
    found = nk.recalibrate(averaged, batches, samples=None)
    ours = averaged.module[0].running_var.double()
    torch.testing.assert_close(ours, truth, rtol=1e-6, atol=0)
    # A population of variance about 1.9 is taken for one of about 1.
    assert (truth > 1.7).all()
    assert (theirs < 1.15).all()
    assert list(found.layers) == ["0", "2"]


def test_agrees_with_update_bn_on_iid_batches() -> None:
    data = torch.randn(640, 4, generator=torch.Generator().manual_seed(2))
    batches = list(data.split(64))
    _, averaged = _trained()
    update_bn(batches, averaged)
    theirs = {k: v.clone() for k, v in averaged.state_dict().items()}
    found = nk.recalibrate(averaged, batches, samples=None)
    for name, one in found.layers.items():
        mean, var = (theirs[f"module.{name}.running_{what}"] for what in ("mean", "var"))
        assert ((mean - one.mean).abs() <= 4 * one.mean_standard_error + 1e-6).all()
        assert ((var - one.variance).abs() <= 4 * one.variance_standard_error + 1e-6).all()


def test_averaged_weights_do_not_change() -> None:
    model, averaged = _trained()
    before = {k: v.clone() for k, v in averaged.state_dict().items()}
    live = {k: v.clone() for k, v in model.state_dict().items()}
    with nk.recalibrate(averaged, _drifting()):
        moved = {k for k, v in averaged.state_dict().items() if not torch.equal(v, before[k])}
        attributes = ("running_mean", "running_var", "num_batches_tracked")
        assert moved == {f"module.{i}.{what}" for i in (0, 2) for what in attributes}
    after = averaged.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert all(torch.equal(v, live[k]) for k, v in model.state_dict().items())


def test_frozen_layers_stay_frozen() -> None:
    _, averaged = _trained()
    held = averaged.module[2]
    nk.freeze(held)
    before = held.running_mean.clone()
    found = nk.recalibrate(averaged, _drifting())
    assert torch.equal(held.running_mean, before)
    assert [(row.name, row.why) for row in found.skipped] == [("2", "frozen")]
    # torch's way to freeze, which its own function undoes.
    _, averaged = _trained()
    averaged.module[2].momentum = 0.0
    before = averaged.module[2].running_mean.clone()
    nk.recalibrate(averaged, _drifting())
    assert torch.equal(averaged.module[2].running_mean, before)
    update_bn(_drifting(), averaged)
    assert not torch.equal(averaged.module[2].running_mean, before)


def _interrupted() -> Iterator[Tensor]:
    yield from _drifting()[:3]
    raise KeyboardInterrupt


def test_interruption_restores_model() -> None:
    _, averaged = _trained()
    averaged.eval()
    before = {k: v.clone() for k, v in averaged.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        nk.recalibrate(averaged, _interrupted())
    after = averaged.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert not any(module.training for module in averaged.modules())
    assert averaged.module[0].momentum == 0.1
    with pytest.raises(KeyboardInterrupt):
        update_bn(_interrupted(), averaged)
    assert averaged.training
    assert averaged.module[0].momentum is None


class ByName(nn.Module):
    """Takes its input by name, as the models of many libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.norm(inputs)
        return out


def test_mappings_reach_averaged_model() -> None:
    batches = [{"inputs": x, "labels": torch.zeros(len(x))} for x in _drifting()]
    averaged = AveragedModel(ByName())
    assert nk.recalibrate(averaged, batches).samples == 2560
