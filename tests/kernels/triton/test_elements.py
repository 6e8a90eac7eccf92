"""Arithmetic of the kernels, one tile at a time, against PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from normkit.core.activations import Act
from normkit.kernels import fused
from normkit.kernels.triton import elements

pytestmark = pytest.mark.usefixtures("interpreted")


@triton.jit
def _acts(z, dy, y, dz, ACT: tl.constexpr, SLOPE: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, SIZE)
    at, gradient = tl.load(z + i), tl.load(dy + i)
    tl.store(y + i, elements.activate(at, ACT, SLOPE))
    tl.store(dz + i, elements.activation_gradient(gradient, at, ACT, SLOPE))


@triton.jit
def _parts(x, out, n, PARTS: tl.constexpr, SIZE: tl.constexpr, CENTRED: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, PARTS)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    count = tl.sum((i < n).to(tl.float32), 1, keep_dims=True)
    values = elements.load(x + i, i < n)
    mean, low, m2, _ = elements.moments_along(values, i < n, count, 1, CENTRED)
    total, mean, low, m2 = elements.merge_along(count, mean, low, m2, 0)
    one = tl.arange(0, 1)[:, None]
    tl.store(out + one, mean)
    tl.store(out + 1 + one, low)
    tl.store(out + 2 + one, m2 / total)
    tl.store(out + 3 + one, elements.reciprocal_deviation(m2 / total, 1e-5))


@triton.jit
def _two(x, out, CUT: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, SIZE)
    first = elements.load(x + i, i < CUT)
    second = elements.load(x + i, i >= CUT)
    mean_a, low_a, m2_a, _ = elements.moments_along(first, i < CUT, CUT, 0, True)
    mean_b, low_b, m2_b, _ = elements.moments_along(second, i >= CUT, SIZE - CUT, 0, True)
    n, mean, low, m2 = elements.merge(CUT, mean_a, low_a, m2_a, SIZE - CUT, mean_b, low_b, m2_b)
    one = tl.arange(0, 1)
    tl.store(out + one, mean)
    tl.store(out + 1 + one, low)
    tl.store(out + 2 + one, m2 / n)


@pytest.mark.parametrize(
    ("act", "theirs"),
    [(Act("relu"), F.relu), (Act("relu6"), F.relu6),
     (Act("leaky_relu", 0.25), partial(F.leaky_relu, negative_slope=0.25))],
    ids=["relu", "relu6", "leaky_relu"],
)  # fmt: skip
def test_gradients_of_nan_are_pytorchs(act: Act, theirs: Callable[[Tensor], Tensor]) -> None:
    z, dy = torch.full((8,), float("nan")).requires_grad_(), torch.arange(8.0)
    y, dz = torch.zeros(2, 8).unbind()
    number, slope = fused.act_numbers(act)
    _acts[(1,)](z.detach(), dy, y, dz, number, slope, 8)
    expected = theirs(z)
    expected.backward(dy)
    torch.testing.assert_close(y, expected.detach(), equal_nan=True)
    assert z.grad is not None and torch.equal(dz, z.grad)


@pytest.mark.parametrize(
    "act",
    [None, Act("relu"), Act("relu6"), Act("leaky_relu", 0.2), Act("silu"), Act("gelu")],
    ids=str,
)
def test_activations(act: Act | None) -> None:
    z, dy = torch.randn(2, 64).mul(4).unbind()
    y, dz = torch.zeros(2, 64).unbind()
    number, slope = fused.act_numbers(act)
    _acts[(1,)](z, dy, y, dz, number, slope, 64)
    wide = z.double().requires_grad_()
    truth = wide * 1 if act is None else act(wide)
    truth.backward(dy.double())
    assert wide.grad is not None
    assert (y - truth).abs().max() < 1e-6 * z.abs().max()
    assert (dz - wide.grad).abs().max() < 1e-6 * (z * dy).abs().max()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in both branches
def test_infinite_values_do_not_become_nan() -> None:
    z = torch.tensor([-torch.inf, torch.inf, torch.nan, -1.0] * 4)
    y, dz = torch.zeros(2, 16).unbind()
    for act in (Act("relu"), Act("relu6"), None):
        number, slope = fused.act_numbers(act)
        _acts[(1,)](z, z, y, dz, number, slope, 16)
        torch.testing.assert_close(y, z if act is None else act(z), equal_nan=True)


@pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 1000, 1024])
@pytest.mark.parametrize("centre", [0.0, 1e4])
def test_parts_merge_to_the_moments_of_all(n: int, centre: float) -> None:
    """Some of the parts are empty."""
    x = torch.randn(1024) * 0.1 + centre
    out, wide = torch.zeros(4), x[:n].double()
    _parts[(1,)](x, out, n, 8, 128, True)
    mean, var = wide.mean(), wide.var(correction=0)
    assert abs(float(out[0].double() + out[1].double() - mean)) < 1e-6
    assert abs(float(out[2] - var)) < 1e-6 * float(var + 1e-5)
    assert float(out[3]) == pytest.approx(float((var + 1e-5).rsqrt()), rel=1e-6)
    assert float(out[0] + out[1]) == float(out[0])  # low is what rounding took
    _parts[(1,)](x, out, n, 8, 128, False)
    assert out[:2].tolist() == [0, 0]
    assert float(out[2]) == pytest.approx(float(wide.square().mean()), rel=1e-6)


@pytest.mark.parametrize("cut", [0, 1, 100, 255, 256])
def test_pairs_merge_to_the_moments_of_all(cut: int) -> None:
    x = torch.randn(256) * 0.1 + 1e4
    out, wide = torch.zeros(3), x.double()
    _two[(1,)](x, out, cut, 256)
    assert abs(float(out[0].double() + out[1].double() - wide.mean())) < 1e-6
    assert float(out[2]) == pytest.approx(float(wide.var(correction=0)), rel=1e-6)
