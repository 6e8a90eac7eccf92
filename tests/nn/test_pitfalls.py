"""The mistakes of published listings, one test each: ours does not make it, and it shows.

From "BN against LN, GN, IN, each implemented" (system S2): axes confused, biased and unbiased
variance mixed up, ε added twice, running statistics where none belong. Each test builds the
mistaken form, shows that it differs, and that the layer does not follow it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import normkit as nk


def _x() -> Tensor:
    scale = torch.arange(1.0, 7.0).view(1, 6, 1, 1)
    shift = torch.arange(3.0).view(3, 1, 1, 1)
    return torch.randn(3, 6, 4, 4) * scale + shift


def _standardized(y: Tensor, dims: tuple[int, ...]) -> bool:
    mean, var = y.mean(dims), y.var(dims, correction=0)
    return bool(mean.abs().max() < 1e-5) and bool((var - 1).abs().max() < 1e-3)


AXES = {
    "BatchNorm2d": (lambda: nk.BatchNorm2d(6), (0, 2, 3), [(2, 3), (1, 2, 3), (0,), (1,)]),
    "InstanceNorm2d": (lambda: nk.InstanceNorm2d(6), (2, 3), [(1,), (3,), (0, 2)]),
    "LayerNorm": (lambda: nk.LayerNorm((6, 4, 4)), (1, 2, 3), [(0, 2, 3), (2, 3), (1,)]),
    "GroupNorm": (lambda: nk.GroupNorm(1, 6), (1, 2, 3), [(0, 2, 3), (2, 3), (1,)]),
    "LayerNorm2d": (lambda: nk.LayerNorm2d(6), (1,), [(2, 3), (0,), (0, 2, 3)]),
}


@pytest.mark.parametrize("name", AXES)
def test_axes_are_not_confused(name: str) -> None:
    make, right, wrong = AXES[name]
    y = make()(_x()).detach()
    assert _standardized(y, right)
    for dims in wrong:
        assert not _standardized(y, dims), f"also standardized over {dims}"


def test_groups_are_neighbouring_channels() -> None:
    y = nk.GroupNorm(2, 6)(_x()).detach()
    assert _standardized(y.view(3, 2, 3, 4, 4), (2, 3, 4))
    assert not _standardized(y.view(3, 3, 2, 4, 4), (1, 3, 4)), "every other channel"


@pytest.mark.parametrize("name", ["BatchNorm2d", "InstanceNorm2d", "LayerNorm", "GroupNorm"])
def test_the_biased_variance_normalizes(name: str) -> None:
    make, dims, _ = AXES[name]
    x = _x()[:, :, :1, :2] if name != "LayerNorm" else _x()
    x = x[:2]
    if name == "LayerNorm":
        make, x = (lambda: nk.LayerNorm((6, 1, 2))), x[:, :, :1, :2]
    y = make()(x).detach()
    mean = x.mean(dims, keepdim=True)
    mistaken = (x - mean) / (x.var(dims, correction=1, keepdim=True) + 1e-5).sqrt()
    right = (x - mean) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(y, right)
    assert float((y - mistaken).abs().max()) > 0.02


def test_the_unbiased_variance_is_remembered() -> None:
    layer = nk.BatchNorm1d(2, momentum=1.0)
    x = torch.randn(3, 2)
    layer(x)
    torch.testing.assert_close(layer.running_var, x.var(0, correction=1))
    assert float((layer.running_var - x.var(0, correction=0)).abs().max()) > 1e-3


@pytest.mark.parametrize("name", AXES)
def test_epsilon_is_added_once_under_the_root(name: str) -> None:
    make, dims, _ = AXES[name]
    layer = make()
    layer.eps = 10.0
    x = _x()
    centred = x - x.mean(dims, keepdim=True)
    var = x.var(dims, correction=0, keepdim=True)
    y = layer(x).detach()
    torch.testing.assert_close(y, centred / (var + 10).sqrt(), rtol=1e-4, atol=1e-5)
    twice = centred / ((var + 10).sqrt() + 10)
    outside = centred / (var.sqrt() + 10)
    for mistaken in (twice, outside):
        assert float((y - mistaken).abs().max()) > 0.1


@pytest.mark.parametrize(
    "layer",
    [
        nk.LayerNorm((6, 4, 4)), nk.GroupNorm(2, 6), nk.LayerNorm2d(6), nk.RMSNorm(4),
        nk.InstanceNorm2d(6, affine=True), nk.HalfInstanceNorm2d(6),
    ],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_no_running_statistics_where_none_belong(layer: torch.nn.Module) -> None:
    assert not list(layer.buffers())
    x = _x()
    trained = layer.train()(x)
    torch.testing.assert_close(layer.eval()(x), trained)
    torch.testing.assert_close(layer(x[:1]), trained[:1]), "another sample has no say"


def test_layer_norm_has_a_parameter_per_element_and_group_norm_per_channel() -> None:
    assert nk.LayerNorm((6, 4, 4)).weight.shape == (6, 4, 4)
    assert nk.GroupNorm(2, 6).weight.shape == (6,)


def test_evaluation_uses_memory_and_training_the_batch() -> None:
    layer = nk.BatchNorm2d(6)
    x = _x()
    layer(x)
    memory = layer.running_mean.clone()
    y = layer.eval()(x).detach()
    assert torch.equal(layer.running_mean, memory), "evaluation must not move it"
    assert not _standardized(y, (0, 2, 3))


def test_caffes_two_layers_equal_the_merged_one() -> None:
    """System S3: BatchNorm without affine, then Scale."""
    merged = nk.BatchNorm2d(6)
    torch.nn.init.normal_(merged.weight)
    torch.nn.init.normal_(merged.bias)
    scale = nk.Scale(6)
    scale.load_state_dict({"weight": merged.weight, "bias": merged.bias})
    apart = torch.nn.Sequential(nk.BatchNorm2d(6, affine=False), scale)
    for training in (True, False):
        merged.train(training)
        apart.train(training)
        xa, xb = (_x().requires_grad_() for _ in range(2))
        xb = xa.detach().clone().requires_grad_()
        ya, yb = merged(xa), apart(xb)
        torch.testing.assert_close(yb, ya)
        dy = torch.randn_like(ya)
        ya.backward(dy)
        yb.backward(dy)
        torch.testing.assert_close(xb.grad, xa.grad, rtol=1e-4, atol=1e-5)
