"""Batch renormalization against the paper's algorithm, and what surrounds the arithmetic."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit.core import reference
from normkit.nn import BatchRenorm1d, BatchRenorm2d, Ramp
from normkit.statistics import batch_statistics
from normkit.surgery import accelerate, freeze
from tests.tolerances import assert_accurate

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def remembering(c: int = 6, **options: Any) -> BatchRenorm2d:
    """A layer that is past the ramp and remembers something else than its next batch has."""
    layer = BatchRenorm2d(c, r_max=2.0, d_max=0.7, **options)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.05, 6)  # beyond both limits, and within
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer


def truth(layer: BatchRenorm2d, x: Tensor, *affine: Tensor) -> Tensor:
    r_max, d_max = layer.limits()
    return reference.batch_renorm(
        x, layer.running_mean, layer.running_var, r_max, d_max, *affine, eps=layer.eps
    )


def gradients(y: Tensor, inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    return [y.detach(), *torch.autograd.grad(y, inputs, dy.to(y.dtype))]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_the_papers_algorithm(dtype: torch.dtype, last: bool) -> None:
    """As near to it as PyTorch's batch normalization, scaled and shifted alike, is to its own."""
    layer = remembering()
    if dtype == torch.float64:
        layer = layer.double()
    x = torch.randn(5, 6, 4, 7).to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    x, dy = x.requires_grad_(), torch.randn(5, 6, 4, 7).to(dtype)
    affine = [layer.weight, layer.bias]
    exact = gradients(truth(layer, x, *affine), [x, *affine], dy)
    # PyTorch's kernel at the same γ·r and β + γ·d, which here come from the definition.
    z = x.detach().double()
    sigma = (layer.running_var.double() + layer.eps).sqrt()
    r = (z.var((0, 2, 3), correction=0) + layer.eps).sqrt() / sigma
    d = (z.mean((0, 2, 3)) - layer.running_mean) / sigma
    assert ((r > 2) | (r < 0.5)).any() and ((r < 2) & (r > 0.5)).any()
    assert (d.abs() > 0.7).any() and (d.abs() < 0.7).any()
    r, d, acc = r.clamp(0.5, 2), d.clamp(-0.7, 0.7), layer.weight.dtype
    scaled = [(layer.weight * r).to(acc), (layer.bias + layer.weight * d).to(acc)]
    y = nn.functional.batch_norm(x, None, None, *scaled, True)
    dx, dscale, dshift = torch.autograd.grad(y, [x, *scaled], dy)
    torchs = [y, dx, dscale * r + dshift * d, dshift]
    got = gradients(layer(x), [x, *affine], dy)
    for what, g, t, p in zip(("y", "dx", "dweight", "dbias"), got, exact, torchs, strict=True):
        assert_accurate(g, t, p.detach(), what)
    assert got[0].is_contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


def test_within_the_limits_training_is_evaluation() -> None:
    layer = remembering().double()
    layer.r_max, layer.d_max = 1e9, 1e9
    x = torch.randn(5, 6, 4, 7, dtype=torch.float64)
    expected = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(copy.deepcopy(layer)(x), expected)
    torch.testing.assert_close(layer(x[:2]), expected[:2])  # whatever else is in the batch


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_at_the_strictest_limits_it_is_batch_normalization(rank: int) -> None:
    make: Any = (BatchRenorm2d, nn.BatchNorm2d) if rank == 4 else (BatchRenorm1d, nn.BatchNorm1d)
    ours, theirs = make[0](4, momentum=0.1, r_max=1, d_max=0), make[1](4)
    schedule = make[0](4, momentum=0.1)  # and so is the paper's, for its first 5000 steps
    for i in range(3):
        x = torch.randn(6, 4, *[3] * (rank - 2)) * (i + 1) + i
        y = ours(x)
        torch.testing.assert_close(y, theirs(x))
        assert torch.equal(y, schedule(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_gradients_by_differences() -> None:
    """At the limits r and d are constant; within, the paper lets no gradient through them."""
    layer = remembering(3, act="silu").double()
    layer.running_var.fill_(1e-3)  # r = r_max
    layer.running_mean.copy_(torch.tensor([9.0, -9.0, 9.0]))  # d = ±d_max
    state = {k: v.clone() for k, v in layer.state_dict().items()}

    def f(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        fresh = {k: v.clone() for k, v in state.items()} | {"weight": weight, "bias": bias}
        found = functional_call(layer, fresh, (x, residual))
        assert isinstance(found, Tensor)
        return found

    inputs = [torch.randn(3, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    affine = [p.detach().requires_grad_() for p in (layer.weight, layer.bias)]
    torch.autograd.gradcheck(f, (*inputs, *affine))
    torch.autograd.gradgradcheck(f, (*inputs, *affine))


def test_it_remembers_as_batch_normalization_does() -> None:
    for average in ("exponential", "cumulative", "debiased"):
        layer = BatchRenorm2d(3, momentum=0.2, r_max=3, d_max=5, average=average)
        plain = nk.BatchNorm2d(3, momentum=0.2, average=average)
        for i in range(4):
            x = torch.randn(4, 3, 5, 5) * (i + 1) + i
            layer(x), plain(x)
        torch.testing.assert_close(layer.state_dict(), plain.state_dict())


def test_the_schedule_follows_the_batches_seen() -> None:
    layer = BatchRenorm1d(2, momentum=0.5, r_max=Ramp(1, 3, 2, 4), d_max=Ramp(0, 1, 0, 4))
    assert layer.limits() == (1, 0)
    seen, x = [], torch.randn(8, 2) * 100 + 1000  # far beyond the limits
    for _ in range(6):
        expected = truth(layer, x)  # type: ignore[arg-type]
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)
        seen.append(layer.limits())
        layer.running_mean.zero_(), layer.running_var.fill_(1)
    assert seen == [(1, 0.25), (1, 0.5), (2, 0.75), (3, 1), (3, 1), (3, 1)]
    # A checkpoint goes on where it was, and a copy too.
    other = BatchRenorm1d(2, momentum=0.5, r_max=Ramp(1, 3, 2, 9), d_max=Ramp(0, 1, 0, 12))
    other.load_state_dict(layer.state_dict())
    assert other.limits() == (1 + 2 * 4 / 7, 0.5)
    assert pickle.loads(pickle.dumps(other)).limits() == other.limits()
    assert layer.limits(3) == (2, 0.75)


def test_limits_of_numpy() -> None:
    layer = BatchRenorm2d(3, r_max=np.float64(3), d_max=Ramp(*np.array([0.0, 5.0, 1.0, 9.0])))
    assert layer.limits(5) == (3.0, 2.5) and type(layer.r_max) is float
    assert "d_max=Ramp(start=0.0, end=5.0, first=1.0, last=9.0)" in repr(layer)


def test_the_papers_schedule() -> None:
    layer = BatchRenorm2d(3)
    for step, expected in [
        (0, (1, 0)),
        (5_000, (1, 0)),
        (25_000, (1 + 40 / 35, 5)),
        (40_000, (3, 5)),
    ]:
        assert layer.limits(step) == pytest.approx(expected)
    assert "r_max=Ramp(start=1.0, end=3.0, first=5000, last=40000)" in repr(layer)


@pytest.mark.parametrize("options", [{"affine": False}, {"bias": False}, {"act": "relu"}], ids=str)
def test_forms(options: dict[str, Any]) -> None:
    layer = remembering(**options)
    x, r = torch.randn(2, 5, 6, 4, 4).unbind()
    affine = [p for p in (layer.weight, layer.bias) if p is not None]
    expected = truth(layer, x, *affine) + r
    expected = expected.relu() if options.get("act") else expected
    torch.testing.assert_close(layer(x, r).double(), expected, rtol=1e-4, atol=1e-5)


def test_compiled() -> None:
    layer = remembering()
    layer.r_max = Ramp(1, 3, 1, 3)
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(4):
        x = torch.randn(5, 6, 4, 4)
        found = []
        for net in (compiled, twin):
            z = x.clone().requires_grad_()
            net(z).square().sum().backward()
            found.append((net(x).detach(), z.grad))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


def test_vmap_over_an_ensemble() -> None:
    models = [remembering(3) for _ in range(3)]
    params, buffers = stack_module_state(models)
    base, x = copy.deepcopy(models[0]).to("meta"), torch.randn(4, 3, 4, 4)
    found = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(params, buffers)
    for y, model in zip(found, models, strict=True):
        torch.testing.assert_close(y, model(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_runs_the_same_batch_again(reentrant: bool) -> None:
    """Though what it remembers has moved since, and r and d with it."""
    plain = remembering(momentum=0.5)
    saved = copy.deepcopy(plain)
    for _ in range(3):
        x = torch.randn(5, 6, 4, 4, requires_grad=True)
        other = x.detach().clone().requires_grad_()
        plain(x).square().sum().backward()
        checkpoint(saved, other, use_reentrant=reentrant).square().sum().backward()
        assert torch.equal(x.grad, other.grad)
    for a, b in zip(plain.parameters(), saved.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    torch.testing.assert_close(saved.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_copies_and_surroundings() -> None:
    model = nn.Sequential(remembering(4), nn.ReLU())
    x = torch.randn(5, 4, 3, 3)
    y = model(x)
    twin = pickle.loads(pickle.dumps(model))
    accelerate(twin)
    assert repr(copy.deepcopy(model)) == repr(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x.bfloat16()).dtype == torch.bfloat16
    # By the batch alone there is nothing to correct towards.
    plain = nk.BatchNorm2d(4, act="relu")
    plain.load_state_dict(model[0].state_dict())
    with batch_statistics(model.eval()):
        torch.testing.assert_close(model(x), plain(x))
    freeze(twin)
    plain.load_state_dict(twin[0].state_dict())
    torch.testing.assert_close(twin.train()(x), plain.eval()(x))
    assert y.shape == x.shape
    forgetful = BatchRenorm2d(4, track_running_stats=False)
    torch.testing.assert_close(forgetful(x), nk.BatchNorm2d(4)(x))


@pytest.mark.parametrize(
    "wrong",
    [{"r_max": 0.5}, {"d_max": -1.0}, {"r_max": Ramp(0.5, 3, 0, 1)}, {"r_max": "3"},
     {"d_max": Ramp(0, 5, 10, 5)}, {"d_max": float("nan")}],
    ids=str,
)  # fmt: skip
def test_limits_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(nk.OptionError, match="Fix: "):
        BatchRenorm2d(3, **wrong)


def test_a_single_value() -> None:
    with pytest.raises(nk.ShapeError, match="more than 1 value per channel"):
        BatchRenorm1d(3)(torch.randn(1, 3))
