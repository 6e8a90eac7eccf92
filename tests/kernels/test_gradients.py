"""Backward and its derivative against finite differences, for every pool, activation and form."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.pools import PER_CHANNEL, PER_POSITION, Pool
from normkit.kernels import cpu, dispatch
from normkit.kernels.aten import Aten, Portable
from normkit.kernels.autograd import run_pair
from normkit.kernels.call import Call, FixedStats, Normalized
from normkit.kernels.dispatch import normalize
from tests.pairwise import pairwise

POOLS = {
    "batch": PER_CHANNEL,
    "ghost": Pool("ghost", 2),
    "group": Pool("group", 2),
    "instance": Pool("group", 4),
    "layer": Pool("group", 1),
    "position": PER_POSITION,
}
ACTS = [None, Act("relu"), Act("relu6"), Act("silu"), Act("gelu"), Act("leaky_relu", 0.3)]


def _inputs(shape: tuple[int, ...] = (4, 4, 2, 2), last: bool = False) -> list[Tensor]:
    c = shape[1]
    x = torch.randn(shape, dtype=torch.float64)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    w, b = torch.randn(2, c, dtype=torch.float64).unbind()
    r = torch.randn(shape, dtype=torch.float64)
    return [t.clone().requires_grad_() for t in (x, w, b, r)]


@pytest.fixture(params=["portable", "native", "any"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "portable":
        monkeypatch.setattr(dispatch, "WAYS", (Portable(),))
    elif request.param == "native":
        monkeypatch.setattr(cpu, "fused", None)
    return str(request.param)


DIMENSIONS = (list(POOLS), ACTS, *[(True, False)] * 3)
PAIRWISE = pairwise(DIMENSIONS)


@pytest.mark.parametrize("case", PAIRWISE, ids=lambda case: "-".join(map(str, case)))
def test_gradients(case: tuple[Any, ...], way: str) -> None:
    _check(*case)


@pytest.mark.slow  # 690 combinations; those above hold every pair of options
@pytest.mark.parametrize("pool", POOLS)
def test_gradients_of_every_combination(pool: str, way: str) -> None:
    for rest in itertools.product(*DIMENSIONS[1:]):
        _check(pool, *rest)


def _check(pool: str, act: Act | None, centred: bool, residual: bool, last: bool) -> None:
    x, w, b, r = _inputs(last=last)
    spec = Spec(POOLS[pool], 1e-2, act, centred)

    def f(x: Tensor, w: Tensor, b: Tensor, *rest: Tensor) -> Tensor:
        return normalize(Call(x, spec, w, b, rest[0] if rest else None)).y

    inputs = (x, w, b, r) if residual else (x, w, b)
    assert gradcheck(f, inputs, fast_mode=True)
    assert gradgradcheck(f, inputs, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("act", ACTS, ids=str)
def test_gradients_with_given_moments(act: Act | None, way: str) -> None:
    x, w, b, r = _inputs()
    stats = FixedStats(torch.randn(4).double(), torch.rand(4).double() + 0.5)
    spec = Spec(PER_CHANNEL, 1e-5, act)

    def f(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
        return normalize(Call(x, spec, w, b, r, stats)).y

    assert gradcheck(f, (x, w, b, r), fast_mode=True)
    assert gradgradcheck(f, (x, w, b, r), fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("wanted", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)])
def test_single_gradient_matches_all_four(pool: Pool, wanted: tuple[int, ...], way: str) -> None:
    tensors = _inputs()
    spec = Spec(pool, 1e-5, Act("silu"))
    y = normalize(Call(tensors[0], spec, *tensors[1:])).y
    dy = torch.randn_like(y)
    all_four = torch.autograd.grad(y, tensors, dy)
    for t, need in zip(tensors, wanted, strict=True):
        t.requires_grad_(bool(need))
    again = normalize(Call(tensors[0], spec, *tensors[1:])).y
    chosen = wanted.index(1)
    (one,) = torch.autograd.grad(again, [tensors[chosen]], dy)
    torch.testing.assert_close(one, all_four[chosen])


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_without_parameters(pool: Pool, way: str) -> None:
    x = _inputs()[0]
    assert gradcheck(lambda x: normalize(Call(x, Spec(pool, 1e-2))).y, (x,), fast_mode=True)


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_with_one_of_the_parameters(pool: Pool, which: str, way: str) -> None:
    x, v = _inputs()[:2]

    def f(x: Tensor, v: Tensor) -> Tensor:
        both = {"weight": None, "bias": None, which: v}
        return normalize(Call(x, Spec(pool, 1e-2), both["weight"], both["bias"])).y

    assert gradcheck(f, (x, v), fast_mode=True)
    assert gradgradcheck(f, (x, v), fast_mode=True, atol=1e-4)


def test_inputs_are_unchanged(way: str) -> None:
    for pool, act, centred in itertools.product(POOLS.values(), ACTS, (True, False)):
        tensors = _inputs()
        before = [t.detach().clone() for t in tensors]
        y = normalize(Call(tensors[0], Spec(pool, 1e-5, act, centred), *tensors[1:])).y
        dy = torch.randn_like(y)
        kept = dy.clone()
        y.backward(dy)
        assert torch.equal(dy, kept)
        assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))


def test_missing_gradient_of_the_mean_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check above can fail: dropping g₁ from dx is seen."""

    class Forgetful(Aten):
        def backward(self, *args):  # type: ignore[no-untyped-def]
            return super().backward(*args[:-1], lambda g1, g2: (g1 * 0, g2 / 16))

    class Wrong(Portable):
        def run(self, call: Call) -> Normalized:
            return run_pair(Forgetful(), call)

    monkeypatch.setattr(dispatch, "WAYS", (Wrong(),))
    x = _inputs()[0]
    with pytest.raises(RuntimeError, match="Jacobian"):
        gradcheck(lambda x: normalize(Call(x, Spec(PER_CHANNEL, 1e-2))).y, (x,), fast_mode=True)
