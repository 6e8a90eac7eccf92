"""Batch normalization by domain: each bank is a batch normalization that knows of no other."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit.nn import DomainBatchNorm1d, DomainBatchNorm2d
from normkit.statistics import batch_statistics, use_domain
from normkit.surgery import accelerate, freeze
from tests.few import few

D = 3


def batches(rank: int, dtype: torch.dtype = torch.float32) -> list[tuple[int, Tensor]]:
    """Batches of three domains, each with a mean and a spread of its own."""
    shape = (8, 4, *[5] * (rank - 2))
    order = [0, 2, 1, 1, 0, 2, 2]
    return [(k, (torch.randn(shape) * (k + 1) + 10 * k).to(dtype)) for k in order]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("average", ["exponential", "cumulative", "debiased"])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_each_bank_is_a_batch_normalization_of_its_own(
    rank: int, average: Any, shared: bool
) -> None:
    make: Any = (
        (DomainBatchNorm2d, nk.BatchNorm2d) if rank == 4 else (DomainBatchNorm1d, nk.BatchNorm1d)
    )
    layer = make[0](4, D, shared, average=average, act="silu")
    plain = [make[1](4, average=average, act="silu") for _ in range(D)]
    nn.init.normal_(layer.weight)
    for k, one in enumerate(plain):
        one.weight.data.copy_(layer.weight if shared else layer.weight[k])
    for k, x in batches(rank):
        x, other = x.requires_grad_(), x.detach().clone().requires_grad_()
        layer.zero_grad(), plain[k].zero_grad()
        with use_domain(layer, k):
            y = layer(x, residual=x)
        y.square().sum().backward()
        expected = plain[k](other, residual=other)
        expected.square().sum().backward()
        assert torch.equal(y, expected) and torch.equal(x.grad, other.grad)
        found = layer.weight.grad if shared else layer.weight.grad[k]
        assert torch.equal(found, plain[k].weight.grad)
        if not shared:  # and no other domain's γ or β learns anything from this batch
            others = [i for i in range(D) if i != k]
            assert not layer.weight.grad[others].any() and not layer.bias.grad[others].any()
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(layer, key), torch.stack([getattr(p, key) for p in plain]))
    layer.eval()
    for k, x in batches(rank)[:3]:
        with use_domain(layer, k):
            assert torch.equal(layer(x), plain[k].eval()(x))


@pytest.mark.parametrize("shared", [True, False])
def test_more_domains_than_channels(shared: bool) -> None:
    layer = DomainBatchNorm1d(1, D, shared, average="debiased").double()
    plain = nk.BatchNorm1d(1, average="debiased").double()
    for x in torch.randn(3, 8, 1, dtype=torch.float64):
        with use_domain(layer, D - 1):
            torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=0)
    assert torch.equal(layer.running_var[D - 1], plain.running_var)
    prune.l1_unstructured(layer, "weight", 0.0)  # whose mask is a buffer
    with use_domain(layer.eval(), D - 1):
        torch.testing.assert_close(layer(x), plain.eval()(x), rtol=0, atol=0)


def test_training_one_domain_leaves_the_others_bit_for_bit() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), DomainBatchNorm2d(4, D, share_affine=False))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for k in range(D):
        before = copy.deepcopy(model[1].state_dict())
        for _ in range(3):
            optimizer.zero_grad()
            with use_domain(model, k):
                model(torch.randn(4, 3, 6, 6) + k).square().sum().backward()
            optimizer.step()
        for key, value in model[1].state_dict().items():
            for i in range(D):
                assert torch.equal(value[i], before[key][i]) is (i != k), (key, i, k)


def test_without_a_domain() -> None:
    layer = DomainBatchNorm2d(3, 2)
    x, kept = torch.randn(4, 3, 5, 5), copy.deepcopy(layer.state_dict())
    for training in (True, False):
        with pytest.raises(
            nk.StatisticsError, match=r"with normkit\.use_domain\(model, k\): model"
        ):
            layer.train(training)(x)
    torch.testing.assert_close(layer.state_dict(), kept, rtol=0, atol=0)
    assert layer.domain is None
    single = DomainBatchNorm2d(3, 1)
    assert single.domain == 0 and torch.equal(single(x), nk.BatchNorm2d(3)(x))


def test_use_domain_is_nested_and_put_back() -> None:
    model = nn.ModuleList([DomainBatchNorm1d(2, 3), nn.Sequential(DomainBatchNorm2d(2, 4))])
    layers = [model[0], model[1][0]]
    layers[1].domain = 3

    def now() -> list[int | None]:
        return [layer.domain for layer in layers]

    with use_domain(model, 1):
        assert now() == [1, 1]
        with use_domain(model[1], 2):
            assert now() == [1, 2]
            with pytest.raises(KeyboardInterrupt), use_domain(model, np.int64(0)):  # type: ignore[arg-type]
                assert now() == [0, 0]
                raise KeyboardInterrupt
            # 3 is for the second alone: neither is told.
            with pytest.raises(nk.OptionError, match="from 0 to 2; received 3"):
                use_domain(model, 3).__enter__()
            assert now() == [1, 2]
        assert now() == [1, 1]
    assert now() == [None, 3]


@pytest.mark.parametrize("wrong", [-1, 2, True, "1", 1.0, None])
def test_domains_that_there_are_not(wrong: Any) -> None:
    layer = DomainBatchNorm2d(3, 2)
    with pytest.raises(nk.OptionError, match=r"from 0 to 1; received .*Fix: "):
        use_domain(layer, wrong).__enter__()
    if wrong is not None:
        with pytest.raises(nk.OptionError, match=r"from 0 to 1; received .*Fix: "):
            layer.domain = wrong
    assert layer.domain is None


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "2"])
def test_numbers_of_domains_that_cannot_be(wrong: Any) -> None:
    with pytest.raises(nk.OptionError, match="Fix: "):
        DomainBatchNorm2d(3, wrong)


def test_what_use_domain_is_not_for() -> None:
    with pytest.raises(nk.StatisticsError, match="DomainBatchNorm2d"):
        use_domain(nn.BatchNorm2d(3), 0).__enter__()
    with pytest.raises(nk.TypeMismatchError, match="an empty list"):
        use_domain([], 0).__enter__()  # type: ignore[arg-type]


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_checkpoints(shared: bool, assign: bool) -> None:
    plain = nn.BatchNorm2d(3)
    nn.init.normal_(plain.weight)
    plain(torch.randn(4, 3, 5, 5) + 2)
    layer = DomainBatchNorm2d(3, 2, shared)
    layer.load_state_dict(plain.state_dict(), assign=assign)
    x = torch.randn(4, 3, 5, 5)
    for k in range(2):
        with use_domain(layer, k):
            torch.testing.assert_close(layer.eval()(x), plain.eval()(x))
    # They are rows of their own from then on.
    with use_domain(layer.train(), 1):
        layer(x)
    assert torch.equal(layer.running_mean[0], plain.running_mean)
    assert layer.num_batches_tracked.tolist() == [1, 2]
    other = DomainBatchNorm2d(3, 2, shared)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other.state_dict(), layer.state_dict(), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="size mismatch"):
        DomainBatchNorm2d(3, 3, shared).load_state_dict(layer.state_dict())


@pytest.mark.parametrize("shared", few([True, False], lambda shared: not shared))
def test_compiled(shared: bool) -> None:
    layer = DomainBatchNorm2d(4, D, shared)
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for k, x in batches(4):
        found = []
        for net in (compiled, twin):
            with use_domain(net, k):
                net(x).square().sum().backward()
                found.append(net(x))
        torch.testing.assert_close(*found)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad)


@pytest.mark.parametrize("shared", [True, False])
def test_vmap_over_an_ensemble(shared: bool) -> None:
    models = [DomainBatchNorm2d(4, D, shared) for _ in range(3)]
    for model in models:
        model.domain = 2
        nn.init.normal_(model.weight)
    params, buffers = stack_module_state(models)
    base, x = copy.deepcopy(models[0]).to("meta"), torch.randn(4, 4, 5, 5)
    found = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(params, buffers)
    for y, model in zip(found, models, strict=True):
        torch.testing.assert_close(y, model(x))
    for key in buffers:
        for row, model in zip(buffers[key], models, strict=True):
            torch.testing.assert_close(row, model.state_dict()[key])


@pytest.mark.parametrize("training", [True, False])
def test_exported(training: bool) -> None:
    layer = DomainBatchNorm2d(4, D, share_affine=False).train(training)
    layer.domain = 1
    x, twin = torch.randn(4, 4, 5, 5), copy.deepcopy(layer)
    program = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(program(x), twin(x))
    torch.testing.assert_close(program.state_dict()["running_mean"], twin.running_mean)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copied: Any) -> None:
    layer = DomainBatchNorm2d(4, D, share_affine=False, act="relu")
    for k, x in batches(4):
        with use_domain(layer, k):
            layer(x)
    twin = copied(layer)
    assert repr(twin) == repr(layer) and "domains=3, share_affine=False" in repr(twin)
    with use_domain(layer.eval(), 1), use_domain(twin.eval(), 1):
        assert torch.equal(twin(x), layer(x))
    assert twin.domain is None and copied(single := DomainBatchNorm2d(4, 1)).domain == single.domain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_channels_last(dtype: torch.dtype) -> None:
    layer, plain = DomainBatchNorm2d(4, D), nk.BatchNorm2d(4)
    layer.domain = 1
    x = torch.randn(4, 4, 5, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype):
        y = layer(x)
        assert y.dtype == dtype and torch.equal(y, plain(x))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.running_var[1], plain.running_var)


def test_checkpointed_layers_move_their_statistics_once() -> None:
    layer, plain = DomainBatchNorm2d(4, D), nk.BatchNorm2d(4)
    layer.domain = 1
    x = torch.randn(4, 4, 5, 5, requires_grad=True)
    for _ in range(2):
        checkpoint(layer, x, use_reentrant=False).square().sum().backward()
        plain(x)
    assert layer.num_batches_tracked.tolist() == [0, 2, 0]
    assert torch.equal(layer.running_mean[1], plain.running_mean)


def test_switches_and_surgery() -> None:
    model = nn.Sequential(DomainBatchNorm2d(4, D), nn.ReLU())
    x = torch.randn(4, 4, 5, 5) + 1
    with use_domain(model, 1):
        y = model(x)
    kept = copy.deepcopy(model.state_dict())
    with batch_statistics(model.eval()), use_domain(model, 2):
        assert torch.equal(model(x), y)
    accelerate(model)
    freeze(model)
    with use_domain(model.train(), 0):  # this bank: mean 0, variance 1
        torch.testing.assert_close(model(x), x.relu() / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(model.state_dict(), kept, rtol=0, atol=0)
    assert nk.SyncBatchNorm.convert_sync_batchnorm(model)[0].domains == D


def test_without_memory_or_affine() -> None:
    x = torch.randn(4, 3, 5, 5)
    layer = DomainBatchNorm2d(3, 2, False, affine=False)
    layer.domain = 1
    torch.testing.assert_close(layer(x), nk.BatchNorm2d(3, affine=False)(x))
    layer = DomainBatchNorm2d(3, 2, False, track_running_stats=False)
    layer.domain = 1
    assert torch.equal(layer.eval()(x), nk.BatchNorm2d(3)(x)) and layer.weight.shape == (2, 3)
    with pytest.raises(nk.ShapeError, match="Expected 3 channels"):
        layer(torch.randn(4, 6, 5, 5))
