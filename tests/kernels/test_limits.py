"""Values near a type's limit: every kernel build and way against the oracle in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import normkit as nk
from normkit.core import reference
from normkit.core.pools import PER_CHANNEL
from normkit.kernels import cpu, dispatch
from normkit.kernels.aten import Portable
from normkit.kernels.moments import moments
from tests.kernels.builds import BUILDS
from tests.tolerances import FLOOR_ULP, error

SHAPE = (6, 8, 5, 7)
Oracle = Callable[..., Tensor]
LAYERS: dict[str, tuple[Callable[..., Any], Oracle]] = {
    "BatchNorm2d": (lambda **o: nk.BatchNorm2d(8, **o), reference.batch_norm),
    "GhostBatchNorm2d": (
        lambda **o: nk.GhostBatchNorm2d(8, 4, **o),
        lambda x, w, b, eps: reference.ghost_batch_norm(x, (3, 3), w, b, eps),
    ),
    "GroupNorm": (
        lambda **o: nk.GroupNorm(2, 8, **o),
        lambda x, w, b, eps: reference.group_norm(x, 2, w, b, eps),
    ),
    "InstanceNorm2d": (
        lambda **o: nk.nn.InstanceNorm2d(8, affine=True, track_running_stats=True, **o),
        reference.instance_norm,
    ),
    "LayerNorm": (
        lambda **o: nk.LayerNorm(SHAPE[1:], **o),
        lambda x, w, b, eps: reference.layer_norm(x, 3, w, b, eps),
    ),
    "LayerNorm2d": (lambda **o: nk.LayerNorm2d(8, **o), reference.layer_norm_2d),
    "RMSNorm": (
        lambda **o: nk.RMSNorm(SHAPE[2:], **o),
        lambda x, w, b, eps: reference.rms_norm(x, 2, w, eps),
    ),
}
# Type, scale, mean in scales, ε. What lies beyond the type's square, and what rounding leaves.
VALUES: dict[str, tuple[torch.dtype, float, float, float]] = {
    "float16 at 6e4": (torch.float16, 1.5e4, 0, 1e-5),
    "float16, subnormal": (torch.float16, 1e-6, 0, 1e-6),
    "float32 at 1e16": (torch.float32, 1e16, 0, 1e-5),
    "float32 at 1e18": (torch.float32, 1e18, 0, 1e-5),
    "float32 at 1e20": (torch.float32, 1e20, 0, 1e-5),
    "float32 at 1e30": (torch.float32, 1e30, 0, 1e-5),
    "float32 at 1e38": (torch.float32, 5e37, 0, 1e-5),
    "float32, a mean of 1e36": (torch.float32, 1e31, 1e5, 1e-5),
    "float32, a mean of 1e6": (torch.float32, 1.0, 1e6, 1e-5),
    "float32 at 1e-18": (torch.float32, 1e-18, 0, 1e-60),
    "float32 at 1e-25": (torch.float32, 1e-25, 0, 1e-60),
    "float32, subnormal": (torch.float32, 1e-40, 0, 1e-60),
    "bfloat16 at 1e30": (torch.bfloat16, 1e30, 0, 1e-5),
    "bfloat16 at 1e38": (torch.bfloat16, 5e37, 0, 1e-5),
    "float64 at 1e100": (torch.float64, 1e100, 0, 1e-5),
}


def _portable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cpu, "fused", None)
    patch.setattr(dispatch, "WAYS", (Portable(),))


WAYS: list[Any] = [*BUILDS, "native", "portable"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name: str = request.param
    before = cpu.fused.in_use() if cpu.fused else None
    if name == "native":
        monkeypatch.setattr(cpu, "fused", None)
    elif name == "portable":
        _portable(monkeypatch)
    elif cpu.fused is not None:
        cpu.fused.use(name)
    yield name
    monkeypatch.undo()
    if cpu.fused is not None:
        cpu.fused.use(before)


def _values(name: str) -> tuple[Tensor, float, float]:
    dtype, scale, mean, eps = VALUES[name]
    g = torch.Generator().manual_seed(3)
    x = torch.rand(SHAPE, generator=g, dtype=torch.float64) * 4 - 2
    return ((x + mean) * scale).to(dtype), scale, eps


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", LAYERS)
def test_against_the_oracle(way: str, name: str, values: str, last: bool) -> None:
    make, oracle = LAYERS[name]
    x, scale, eps = _values(values)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    layer = make(eps=eps)
    if x.dtype == torch.float64:
        layer.double()
    elif scale > 1e19:  # the variance exceeds float32
        _widen_buffers(layer)
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    dy = torch.randn(SHAPE, generator=g, dtype=torch.float64).to(x.dtype)
    x.requires_grad_()
    y = layer(x)
    got = [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy)]

    wide = [t.detach().double().requires_grad_() for t in (x, *layer.parameters())]
    exact = (
        oracle(*wide, *[None] * (3 - len(wide)), eps=eps)
        if len(wide) == 3
        else oracle(wide[0], wide[1], None, eps)
    )
    truth = [exact.detach(), *torch.autograd.grad(exact, wide, dy.double())]
    terms = float(dy.double().abs().sum())  # γ and β: their terms cancel
    gamma = float(wide[1].detach().abs().max())
    limits = [0.0, gamma * float(dy.abs().max()), terms, terms]
    far = VALUES[values][2] != 0
    if far and way == "native":
        return  # PyTorch's own error, up to values that are none: test_ways.py compares the two
    if far and way == "portable":
        got = got[:1]
    for i, (value, expected, limit) in enumerate(zip(got, truth, limits, strict=False)):
        factor = scale if i == 1 else 1.0  # dx is of the order of one part in x
        # PyTorch's kernels for half types round γ's and β's gradients to them.
        eps_of = torch.finfo(x.dtype if i < 2 or way == "native" else value.dtype).eps
        found = error(value.double() * factor, expected * factor, limit)
        assert found <= FLOOR_ULP * eps_of, (["y", "dx", "dweight", "dbias"][i], found)
    # Subnormal numbers have few digits, and so do merged means that are far from zero.
    digits = "subnormal" not in values and not (far and way == "portable")
    if hasattr(layer, "running_mean") and digits:
        _check_running(layer, wide[0].detach())


def _widen_buffers(layer: Any) -> None:
    for name in {"running_mean", "running_var"} & layer._buffers.keys():
        layer._buffers[name] = layer._buffers[name].double()


def _check_running(layer: Any, x: Tensor) -> None:
    if isinstance(layer, nk.nn.InstanceNorm2d):
        mean, var = x.mean((0, 2, 3)), x.var((2, 3)).mean(0)
    else:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    scale = x.std()
    expected = (0.1 * mean / scale).float(), (0.9 + 0.1 * var).to(layer.running_var.dtype)
    close = {"rtol": 2e-6, "atol": 1e-6}
    got = (layer.running_mean.double() / scale).float()
    torch.testing.assert_close(got, expected[0], **close)
    torch.testing.assert_close(layer.running_var, expected[1], **close)


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm", "LayerNorm", "LayerNorm2d"])
def test_what_is_not_finite_stays_so(way: str, name: str) -> None:
    """As in torch.nn: the pools that it stands in, and no others."""
    make, oracle = LAYERS[name]
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
        x[1, 2, 3, 4] = bad
        y = make()(x)
        truth = oracle(x, None, None, 1e-6 if name == "LayerNorm2d" else 1e-5)
        torch.testing.assert_close(y, truth.float(), equal_nan=True, rtol=1e-4, atol=1e-5)
        assert y.isnan().any() and (name == "LayerNorm" or y.isfinite().any())


def test_one_channel_beyond_leaves_the_others_as_they_are(way: str) -> None:
    x, residual = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).unbind()
    x[:, 3] *= 1e25
    layer = nk.BatchNorm2d(8, act="relu")
    _widen_buffers(layer)
    y = layer(x, residual)
    truth = (reference.batch_norm(x) + residual.double()).clamp_min(0)
    torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)
    assert int(layer.num_batches_tracked) == 1
    _check_running(layer, x.double())


@pytest.mark.parametrize("values", ["float32 at 1e30", "bfloat16 at 1e38", "float32 at 1e-25"])
def test_moments(way: str, values: str) -> None:
    x, scale, _ = _values(values)
    found = moments(x, PER_CHANNEL)
    truth = x.double()
    torch.testing.assert_close(
        found.mean / scale, truth.mean((0, 2, 3)) / scale, rtol=1e-6, atol=1e-7
    )
    if scale > 1:
        exact = truth.var((0, 2, 3), correction=0)
        torch.testing.assert_close(
            found.variance / exact, torch.ones(8).double(), rtol=1e-6, atol=0
        )


ACTS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "relu": ("relu", F.relu),
    "silu": ("silu", F.silu),
    "gelu": ("gelu", F.gelu),
    "leaky_relu": (("leaky_relu", 0.1), lambda z: F.leaky_relu(z, 0.1)),
    "leaky_relu above 1": (("leaky_relu", 2.0), lambda z: F.leaky_relu(z, 2.0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ACTS)
def test_activations_and_their_derivatives(way: str, name: str, dtype: torch.dtype) -> None:
    """To the type's limits, where exponentials vanish or overflow and are multiplied with z."""
    act, function = ACTS[name]
    layer = nk.FrozenBatchNorm2d(1, eps=1e-30, act=act)  # z is x
    most = torch.finfo(dtype).max
    magnitudes = [0.0, 1e-40, 1e-7, 1, 5, 13, 20, 60, 87, 88, 89, 100, 104, 710, 1e4, 6e4]
    values = torch.tensor([*magnitudes, most / 4, most / 2], dtype=torch.float64).to(dtype)
    x = torch.cat([values, -values]).reshape(1, 1, 1, -1).requires_grad_()
    wide = x.detach().double().requires_grad_()
    y, truth = layer(x), function(wide)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    (derivative,) = torch.autograd.grad(truth, wide, torch.ones_like(truth))
    rtol = FLOOR_ULP * torch.finfo(dtype).eps
    exact = truth.clamp(-most, most) if name == "leaky_relu above 1" else truth
    got = y.detach().clamp(-most, most).double()
    torch.testing.assert_close(got, exact.detach(), rtol=rtol, atol=rtol)
    torch.testing.assert_close(dx.double(), derivative, rtol=rtol, atol=rtol)
