"""``torch.optim.swa_utils.update_bn`` and what else sets momentum to None, on every layer."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

import normkit as nk
from tests.nn.every_layer import EVERY, Sample

BATCH_NORMS = {
    name: sample
    for name, sample in EVERY.items()
    if issubclass(sample.cls, _BatchNorm) and "Lazy" not in name
}
AVERAGES = ["exponential", "cumulative", "debiased"]


def _batches(sample: Sample, count: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(sample.shape) * (i + 1) + i for i in range(count)]


def _stats(layer: Any) -> tuple[Tensor, Tensor]:
    mean, var = layer.running_mean, layer.running_var
    return (mean[0], var[0]) if mean.dim() == 2 else (mean, var)


def _expected(batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    flat = [x.double().transpose(0, 1).flatten(1) for x in batches]
    mean = torch.stack([x.mean(1) for x in flat]).mean(0)
    return mean.float(), torch.stack([x.var(1) for x in flat]).mean(0).float()


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", BATCH_NORMS)
def test_every_batch_weighs_the_same(name: str, average: str) -> None:
    sample = BATCH_NORMS[name]
    batches = _batches(sample)
    layer = sample.make(average=average)
    layer(batches[0] * 9)
    model = nn.Sequential(layer)
    update_bn(batches, model)
    torch.testing.assert_close(_stats(layer), _expected(batches))
    assert layer.momentum == sample.make().momentum and layer.average == average
    model.train()(batches[0])  # trains on
    assert int(layer.num_batches_tracked.max()) == 4


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", BATCH_NORMS)
def test_interrupted(name: str, average: str) -> None:
    """PyTorch leaves momentum at None: the layer trains on as cumulative, and can be copied."""
    sample = BATCH_NORMS[name]
    batches = _batches(sample)

    def interrupted() -> Iterator[Tensor]:
        yield from batches[:2]
        raise KeyboardInterrupt

    model = nn.Sequential(sample.make(average=average))
    with pytest.raises(KeyboardInterrupt):
        update_bn(interrupted(), model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        layer: Any = twin[0]
        assert layer.momentum is None and layer.average == average
        if name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"):
            twin = nk.SyncBatchNorm.convert_sync_batchnorm(twin)
            layer = twin[0]
            assert layer.average == average
        twin(batches[2])
        torch.testing.assert_close(_stats(layer), _expected(batches))
        layer.momentum = 0.1
        twin(batches[0])


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", BATCH_NORMS)
def test_statistics_assigned_anew_as_by_lightning(name: str, average: str) -> None:
    """StochasticWeightAveraging.reset_batch_norm_and_save_state, line by line."""
    sample = BATCH_NORMS[name]
    batches = _batches(sample)
    layer = sample.make(average=average)
    layer(batches[0] * 9)
    layer.running_mean = torch.zeros_like(layer.running_mean)
    layer.running_var = torch.ones_like(layer.running_var)
    momentum, layer.momentum = layer.momentum, None
    layer.num_batches_tracked *= 0
    for x in batches:
        layer(x)
    layer.momentum = momentum
    torch.testing.assert_close(_stats(layer), _expected(batches))


@pytest.mark.parametrize("name", ["BatchRenorm1d", "BatchRenorm2d"])
@pytest.mark.parametrize("average", ["cumulative", "debiased"])
def test_renorm_corrects_towards_nothing_while_nothing_is_remembered(
    name: str, average: str
) -> None:
    sample = EVERY[name]
    x = torch.randn(sample.shape) * 3 + 5
    layer = sample.make(average=average, r_max=3.0, d_max=5.0)
    torch.testing.assert_close(layer(x), sample.make(r_max=1.0, d_max=0.0)(x))


def test_of_one_domain_leaves_the_others() -> None:
    layer = nk.nn.DomainBatchNorm2d(4, domains=3)
    model = nn.Sequential(layer)
    batches = _batches(EVERY["DomainBatchNorm2d"])
    for k in range(3):
        with nk.use_domain(model, k):
            model(batches[k])
    before = layer.running_mean.clone()
    with nk.use_domain(model, 1):
        update_bn(batches, model)
    torch.testing.assert_close(layer.running_mean[1], _expected(batches)[0])
    assert torch.equal(layer.running_mean[0], before[0])
    assert torch.equal(layer.running_mean[2], before[2])
    assert layer.num_batches_tracked.tolist() == [1, 3, 1]
    layer.domain = 2
    layer.reset_parameters()
    assert not layer.running_mean.any() and layer.domain == 2


def test_frozen_layers_stay() -> None:
    batches = _batches(EVERY["BatchNorm2d"])
    model = nn.Sequential(nk.BatchNorm2d(4), nn.BatchNorm2d(4), nk.FrozenBatchNorm2d(4))
    model(batches[0])
    nk.freeze(model)
    before = copy.deepcopy(model.state_dict())
    update_bn(batches, model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_instance_norm_with_running_statistics_is_as_torchs() -> None:
    batches = _batches(EVERY["InstanceNorm2d"])
    ours, theirs = (m.InstanceNorm2d(4, track_running_stats=True) for m in (nk.nn, nn))
    for layer in (ours, theirs):
        update_bn(batches, nn.Sequential(layer))
        layer.momentum = None
        layer.train()(batches[0])
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def _loaded(average: str, state: dict[str, Tensor]) -> list[str]:
    layer = nk.BatchNorm2d(4, average=average)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nn.Sequential(layer).load_state_dict({f"0.{k}": v for k, v in state.items()}, strict=False)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("average", AVERAGES)
def test_a_checkpoint_without_a_count_is_named(average: str) -> None:
    """The next batch would replace the statistics that were loaded."""
    trained = nn.BatchNorm2d(4)
    trained(_batches(EVERY["BatchNorm2d"])[1])
    state = trained.state_dict()
    uncounted = {k: v for k, v in state.items() if k != "num_batches_tracked"}
    zero = {**state, "num_batches_tracked": torch.tensor(0)}
    assert not _loaded(average, state)
    assert not _loaded(average, nn.BatchNorm2d(4).state_dict())
    for incomplete in (uncounted, zero):
        words = _loaded(average, incomplete)
        assert len(words) == (average != "exponential")
        assert all("statistics of 0," in w and "; received 0" in w for w in words)


def test_a_count_that_no_average_uses_is_not_named() -> None:
    """Statistics that stay, frozen or with momentum 0, are not replaced by the next batch."""
    frozen, still = nk.BatchNorm2d(4, average="debiased"), nk.BatchNorm2d(4, average="cumulative")
    state = {**nn.BatchNorm2d(4).state_dict(), "running_mean": torch.ones(4)}
    nk.freeze(frozen)
    still.momentum = 0
    for layer in (frozen, still):
        layer.load_state_dict(state)
        layer.train()(torch.randn(3, 4, 2, 2))
        assert torch.equal(layer.running_mean, torch.ones(4))


@pytest.mark.parametrize("average", ["cumulative", "debiased"])
def test_an_average_by_a_count_that_is_not_there_is_refused(average: str) -> None:
    layer = nk.BatchNorm2d(4, average=average)
    layer.num_batches_tracked = None
    before = layer.running_mean.clone()
    with pytest.raises(nk.StatisticsError, match="num_batches_tracked"):
        layer(torch.randn(3, 4, 2, 2))
    assert torch.equal(layer.running_mean, before)
