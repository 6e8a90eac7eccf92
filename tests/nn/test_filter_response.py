"""Filter response normalization against the oracle, also of a single position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from normkit.core import reference

SHAPES: dict[str, tuple[int, ...]] = {
    "FilterResponseNorm1d": (4, 6, 9),
    "FilterResponseNorm2d": (4, 6, 5, 7),
    "FilterResponseNorm3d": (2, 6, 3, 4, 5),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"tlu": False},
    {"learn_eps": True},
    {"affine": False},
    {"bias": False, "eps": 1e-3},
]
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def _made(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    layer = getattr(nk, name)(6, **options)
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer.double() if dtype == torch.float64 else layer


def _truth(layer: Any, x: Tensor) -> Tensor:
    return reference.filter_response_norm(
        x, layer.weight, layer.bias, layer.tau, layer.eps, layer.eps_l
    )


def _check(layer: Any, x: Tensor, exact: float) -> None:
    """Compare output and all gradients with the oracle, to ``exact`` units in the last place."""
    leaves = [x, *layer.parameters()]
    y, truth = layer(x), _truth(layer, x)
    dy = torch.randn_like(y)
    got, right = [y], [truth]
    # What is rounded to a half type may come to lie on the other side of the threshold.
    if layer.tau is None or x.dtype not in (torch.bfloat16, torch.float16):
        got += torch.autograd.grad(y, leaves, dy)
        right += torch.autograd.grad(truth, leaves, dy.double())
    for a, b in zip(got, right, strict=True):
        limit = exact * torch.finfo(a.dtype).eps * float(b.detach().abs().max().clamp_min(1e-30))
        assert float((a.double() - b).detach().abs().max()) <= limit


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_against_the_oracle(name: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    layer = _made(name, dtype, **options)
    x = (torch.randn(SHAPES[name], dtype=torch.float64) * 2 + 1).to(dtype).requires_grad_()
    _check(layer, x, 32)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 1), (8, 6, 1, 1), (8, 6, 1, 1, 1)], ids=str)
def test_a_single_position(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """Its gradient, ε/(x² + ε)^1.5, is what float32 loses in a difference of two near ones."""
    name = f"FilterResponseNorm{max(len(shape) - 2, 1)}d"
    layer = _made(name, **options)
    x = torch.empty(shape).uniform_(0.5, 3).requires_grad_()
    _check(layer, x, 16)


def test_the_trap_of_a_single_position_is_there() -> None:
    """torch's operations on the same formula in float32, whose gradient is all rounding."""
    x = torch.empty(32, 6).uniform_(0.5, 3).requires_grad_()
    naive = torch.autograd.grad((x * torch.rsqrt(x.square() + 1e-6)).sum(), x)[0].double()
    ours = torch.autograd.grad(nk.FilterResponseNorm1d(6, tlu=False)(x).sum(), x)[0].double()
    truth = 1e-6 / (x.detach().double().square() + 1e-6) ** 1.5
    assert float(((naive - truth) / truth).abs().max()) > 0.01
    torch.testing.assert_close(ours, truth, rtol=1e-6, atol=0)


def test_the_threshold_takes_the_place_of_relu() -> None:
    layer = nk.FilterResponseNorm2d(6)
    x = torch.randn(4, 6, 5, 5)
    torch.testing.assert_close(layer(x), F.relu(nk.FilterResponseNorm2d(6, tlu=False)(x)))
    with torch.no_grad():
        layer.tau.fill_(-0.5)
    assert float(layer(x).detach().min()) == -0.5


def test_where_both_are_equal_the_gradient_is_that_of_the_threshold() -> None:
    """As at the start, where an input of 0 meets β = τ = 0; compiled too."""
    layer = nk.FilterResponseNorm2d(6)
    x = torch.relu(torch.randn(4, 6, 5, 5))
    for call in (layer, lambda x: torch.func.functional_call(layer, {}, (x.as_subclass(Plain),))):
        layer.zero_grad()
        call(x).sum().backward()
        zeros = (x == 0).sum((0, 2, 3)).float()
        torch.testing.assert_close(layer.tau.grad, zeros)
        torch.testing.assert_close(layer.bias.grad, 100 - zeros)
    bad = x.clone()
    bad[0, 0, 0, 0] = float("nan")
    assert bool(layer(bad)[0, 0].isnan().all())


class Plain(Tensor):
    """A tensor subclass, for which layers take the traced way."""


def test_no_batch_and_no_mode_matters() -> None:
    layer, x = _made("FilterResponseNorm2d"), torch.randn(4, 6, 5, 5)
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))
    torch.testing.assert_close(layer.eval()(x), layer.train()(x))


def test_keys_reset_and_channels_last() -> None:
    layer = nk.FilterResponseNorm2d(6, learn_eps=True)
    start = {k: v.clone() for k, v in layer.state_dict().items()}
    assert {k: float(v[0]) for k, v in start.items()} == {
        "weight": 1.0, "bias": 0.0, "tau": 0.0, "eps_l": pytest.approx(1e-4),
    }  # fmt: skip
    for p in layer.parameters():
        nn.init.normal_(p)
    layer.reset_parameters()
    torch.testing.assert_close(dict(layer.state_dict()), start)
    x = torch.randn(4, 6, 5, 5).contiguous(memory_format=torch.channels_last)
    for options in OPTIONS:
        other = _made("FilterResponseNorm2d", **options)
        y = other(x)
        assert y.is_contiguous(memory_format=torch.channels_last), options
        torch.testing.assert_close(y, other(x.contiguous()))
