"""After recalibration averages that count their batches continue from the new statistics."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

import normkit as nk
from normkit.cli.checkpoint import locate_part
from normkit.cli.checkpoint_entries import replace_stats
from normkit.integrations.stats_swap import StatsSwap
from normkit.nn import BatchRenorm1d, DomainBatchNorm1d
from normkit.statistics import StatsSpec, stats_spec

LAYERS: dict[str, Any] = {
    "torch": lambda: nn.BatchNorm1d(4),
    "torch, momentum=None": lambda: nn.BatchNorm1d(4, momentum=None),
    "exponential": lambda: nk.BatchNorm1d(4),
    "momentum=None": lambda: nk.BatchNorm1d(4, momentum=None),
    "cumulative": lambda: nk.BatchNorm1d(4, average="cumulative"),
    "debiased": lambda: nk.BatchNorm1d(4, average="debiased"),
    "sync": lambda: nk.SyncBatchNorm(4, average="cumulative"),
    "renorm": lambda: BatchRenorm1d(4, average="cumulative"),
    "domains": lambda: DomainBatchNorm1d(4, 1, average="cumulative"),
}


def batches(number: int = 8, size: int = 100, mean: float = 10.0) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(size, 4, generator=g) + mean for _ in range(number)]


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def count(model: nn.Module) -> int:
    counter = model.get_submodule("0").num_batches_tracked
    assert isinstance(counter, Tensor)
    return int(counter.sum())


def test_one_counter_for_several_sets() -> None:
    """A third party's layer with domains may count the batches of all of them together."""

    class Domains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.domain = 0
            self.register_buffer("running_mean", torch.zeros(3, 4))
            self.register_buffer("running_var", torch.ones(3, 4))
            self.register_buffer("num_batches_tracked", torch.tensor(5))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = (x - self.running_mean[self.domain]) / self.running_var[self.domain]
            return out

    @stats_spec.register(Domains)
    def _(layer: Domains) -> StatsSpec:
        return StatsSpec(bank=lambda layer: layer.domain)

    def forward(net: nn.Module, batch: tuple[int, Tensor]) -> Any:
        net.domain = batch[0]
        return net(batch[1])

    layer = Domains()
    data = [(i % 2, x) for i, x in enumerate(batches(7))]
    with nk.recalibrate(layer, data, forward=forward, samples=None, progress=False) as found:
        assert [one.batches for one in found.layers.values()] == [4, 3]
        assert int(layer.num_batches_tracked) == 7
        assert layer.running_mean[1].mean() > 9 and not layer.running_mean[2].any()
    assert int(layer.num_batches_tracked) == 5 and not layer.running_mean.any()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layerwise", [False, True])
def test_averages_continue(name: str, layerwise: bool) -> None:
    """A batch of another mean has a ninth after eight, and not everything, as torch has it."""
    model = nn.Sequential(LAYERS[name]())
    model.train()(torch.randn(6, 4))
    before, layer = bits(model), model[0]
    found = nk.recalibrate(model, batches(), samples=None, layerwise=layerwise, progress=False)
    assert count(model) == 8 == found.layers["0[0]" if name == "domains" else "0"].batches
    mean = layer.running_mean.clone()
    model.train()(torch.randn(50, 4))
    moved = ((mean - layer.running_mean) / mean).mean()
    assert 0.08 < moved < 0.2, moved
    found.undo()
    assert bits(model) == before


@pytest.mark.parametrize("name", ["torch", "torch, momentum=None", "exponential", "cumulative"])
def test_counts_as_update_bn_does(name: str) -> None:
    ours, theirs = nn.Sequential(LAYERS[name]()), nn.Sequential(LAYERS[name]())
    for _ in range(3):
        ours.train()(torch.randn(6, 4))
        theirs.train()(torch.randn(6, 4))
    update_bn(batches(5), theirs)
    nk.recalibrate(ours, batches(5), samples=None, progress=False)
    assert count(ours) == count(theirs) == 5


def test_renormalization_keeps_its_progress() -> None:
    """It relaxes its limits by the count of batches, which must not become strict again."""
    model = nn.Sequential(BatchRenorm1d(4))
    model[0].num_batches_tracked.fill_(6_000)
    limits = model[0].limits()
    nk.recalibrate(model, batches(), samples=None, progress=False)
    assert count(model) == 6_000 and model[0].limits() == limits


def test_layers_that_do_not_count_are_left() -> None:
    instance = nn.InstanceNorm1d(4, track_running_stats=True)
    counted = nk.BatchNorm1d(4)
    nk.freeze(counted)
    model = nn.Sequential(instance, nk.BatchNorm1d(4), counted)
    x = [b.unsqueeze(-1) + torch.randn(100, 4, 5) for b in batches(2)]
    nk.recalibrate(model, x, samples=None, progress=False)
    assert [int(m.num_batches_tracked) for m in (model[0], model[1], model[2])] == [0, 2, 0]


def test_frozen_and_back() -> None:
    """What was frozen goes on where it was; while it is, recalibration leaves its count."""
    model = nn.Sequential(nk.BatchNorm1d(4, average="cumulative"), nk.BatchNorm1d(4))
    nk.recalibrate(model, batches(), samples=None, progress=False)
    nk.freeze(model[0])
    nk.recalibrate(model, batches(3), samples=None, progress=False)
    assert count(model) == 8
    nk.unfreeze(model[0])
    model.train()(torch.randn(50, 4))
    assert count(model) == 9 and float(model[0].running_mean.mean()) > 8


def test_swap_restores_the_count() -> None:
    """As between Lightning's validation and the next step of training."""
    model, swap = nn.Sequential(nk.BatchNorm1d(4, average="debiased")), StatsSwap()
    for _ in range(3):
        model.train()(torch.randn(6, 4))
    before = bits(model)
    swap.save(model)
    nk.recalibrate(model, batches(), samples=None, progress=False)
    swap.applied(model)
    assert count(model) == 8
    swap.restore(model)
    assert bits(model) == before


def test_checkpoint_has_the_count(tmp_path: Path) -> None:
    """One that `normkit recalibrate` wrote is trained on from; one of an old torch has none."""
    model = AveragedModel(nn.Sequential(nk.BatchNorm1d(4, average="cumulative")))
    content = {"model": copy.deepcopy(model.state_dict())}
    part = locate_part(content, model)
    nk.recalibrate(model, batches(), samples=None, progress=False)
    new = replace_stats(content, part, model)["model"]
    assert int(new["module.0.num_batches_tracked"]) == 8
    assert int(content["model"]["module.0.num_batches_tracked"]) == 0
    assert new["n_averaged"] is content["model"]["n_averaged"]
    old = {"model": {k: v for k, v in content["model"].items() if not k.endswith("tracked")}}
    assert set(replace_stats(old, part, model)["model"]) == set(old["model"])
