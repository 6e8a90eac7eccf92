"""Every layer against the float64 oracle, over shapes, layouts, types, modes and offsets."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
import normkit.nn as nn_ours
from normkit.core import reference
from normkit.kernels import dispatch
from normkit.kernels.aten import Portable
from tests.tolerances import assert_accurate

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
IMAGES = [(4, 6, 5, 7), (1, 6, 3, 3), (3, 7, 1, 9), (5, 1, 4, 4), (2, 40, 2, 2)]


class Case(NamedTuple):
    """A layer, the oracle's way to its result, and PyTorch's."""

    make: Callable[[int], nn.Module]
    truth: Callable[..., Tensor]
    theirs: Callable[[int], nn.Module]


class ChannelsMoved(nn.LayerNorm):
    """PyTorch's way to LayerNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Parts(nn.BatchNorm2d):
    """PyTorch's way to ghost batches of two."""

    def forward(self, x: Tensor) -> Tensor:
        sizes = nk.GhostBatchNorm2d(1, 2).part_sizes(len(x))
        return torch.cat([super(Parts, self).forward(p) for p in x.split(sizes)])


class Half(nn.InstanceNorm2d):
    """PyTorch's way to the half instance normalization block."""

    def __init__(self, c: int) -> None:
        super().__init__((c + 1) // 2, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        k = self.num_features
        return torch.cat([super().forward(x[:, :k]), x[:, k:]], 1)


def _groups(c: int) -> int:
    return 2 if c % 2 == 0 else 1


CASES = {
    "BatchNorm2d": Case(
        nk.BatchNorm2d, lambda x, w, b: reference.batch_norm(x, w, b), nn.BatchNorm2d
    ),
    "BatchRenorm2d": Case(
        lambda c: nn_ours.BatchRenorm2d(c, momentum=0.1),
        lambda x, w, b: reference.batch_renorm(
            x, torch.zeros(x.shape[1]), torch.ones(x.shape[1]), 1, 0, w, b
        ),
        nn.BatchNorm2d,
    ),
    "GroupNorm": Case(
        lambda c: nk.GroupNorm(_groups(c), c),
        lambda x, w, b: reference.group_norm(x, _groups(x.shape[1]), w, b),
        lambda c: nn.GroupNorm(_groups(c), c),
    ),
    "InstanceNorm2d": Case(
        lambda c: nk.InstanceNorm2d(c, affine=True),
        lambda x, w, b: reference.instance_norm(x, w, b),
        lambda c: nn.InstanceNorm2d(c, affine=True),
    ),
    "LayerNorm2d": Case(
        lambda c: nk.LayerNorm2d(c, eps=1e-5),
        lambda x, w, b: reference.layer_norm_2d(x, w, b, 1e-5),
        ChannelsMoved,
    ),
    "GhostBatchNorm2d": Case(
        lambda c: nk.GhostBatchNorm2d(c, 2),
        lambda x, w, b: reference.ghost_batch_norm(
            x, nk.GhostBatchNorm2d(1, 2).part_sizes(len(x)), w, b
        ),
        Parts,
    ),
    "HalfInstanceNorm2d": Case(
        nk.HalfInstanceNorm2d, lambda x, w, b: reference.half_instance_norm(x, w, b), Half
    ),
}


def _prepare(
    case: Case, shape: tuple[int, ...], dtype: torch.dtype, last: bool, offset: float
) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A layer with random parameters, and its input, residual and output gradient."""
    layer = case.make(shape[1])
    if dtype == torch.float64:  # PyTorch's kernels take float32 parameters with half types only
        layer = layer.double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))
    x = torch.randn(shape, dtype=torch.float64) * (0.1 if offset else 1.0) + offset
    x = x.to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    residual, dy = torch.randn_like(x), torch.randn_like(x)
    return layer, x.requires_grad_(), residual.requires_grad_(), dy


def _with_gradients(
    f: Callable[..., Tensor], inputs: list[Tensor], dy: Tensor
) -> tuple[Tensor, ...]:
    y = f(*inputs)
    return (y.detach(), *torch.autograd.grad(y, inputs, dy.to(y.dtype)))


# One channel has no variance at a position: test_one_value_per_pool.
PAIRS = [(n, s) for n in CASES for s in IMAGES if not (n == "LayerNorm2d" and s[1] == 1)]


@pytest.mark.parametrize(("name", "shape"), PAIRS, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_images(name: str, shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> None:
    case = CASES[name]
    layer, x, residual, dy = _prepare(case, shape, dtype, last, offset=0.0)
    params = [layer.weight, layer.bias]

    # A residual added in a half type outside the layer is rounded once more than inside it.
    got = _with_gradients(lambda x, r, w, b: layer(x, r), [x, residual, *params], dy)
    truth = _with_gradients(
        lambda x, r, w, b: case.truth(x, w, b) + r.double(), [x, residual, *params], dy
    )
    other = case.theirs(shape[1]).to(layer.weight.dtype)
    other.load_state_dict(layer.state_dict())
    torchs = _with_gradients(
        lambda x, r, w, b: other(x) + r, [x, residual, other.weight, other.bias], dy
    )
    for what, a, t, p in zip(
        ("y", "dx", "dresidual", "dweight", "dbias"), got, truth, torchs, strict=True
    ):
        assert_accurate(a, t.detach(), p, what)
    assert got[0].is_contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm", "InstanceNorm2d", "LayerNorm2d"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", ["any", "portable"])
def test_far_from_zero(
    name: str, last: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean 1e4, deviation 0.1 in float32, where E[x²] − E[x]² has no correct digit left."""
    if backend == "portable":
        monkeypatch.setattr(dispatch, "WAYS", (Portable(),))
    case = CASES[name]
    layer, x, _, dy = _prepare(case, (8, 6, 9, 9), torch.float32, last, offset=1e4)
    inputs = [x, layer.weight, layer.bias]
    got = _with_gradients(lambda x, w, b: layer(x), inputs, dy)
    truth = _with_gradients(case.truth, inputs, dy)
    other = case.theirs(6)
    other.load_state_dict(layer.state_dict())
    torchs = _with_gradients(lambda x, w, b: other(x), [x, other.weight, other.bias], dy)
    for what, a, t, p in zip(("y", "dx", "dweight", "dbias"), got, truth, torchs, strict=True):
        assert_accurate(a, t.detach(), p, what)


def test_one_value_per_pool() -> None:
    """A value is its own mean: the result is β, and no gradient reaches the input."""
    layer = nk.LayerNorm2d(1)
    nn.init.constant_(layer.bias, 3.0)
    x = torch.randn(2, 1, 3, 3, requires_grad=True)
    y = layer(x)
    y.backward(torch.randn_like(y))
    assert bool((y == 3).all())
    assert x.grad is not None and not x.grad.any()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (1, 5), (4, 2, 3, 5)], ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("axes", [1, 2])
def test_rows(dtype: torch.dtype, shape: tuple[int, ...], kind: str, axes: int) -> None:
    size = shape[-axes:]
    eps = 1e-5
    ours, theirs = (nk.LayerNorm, nn.LayerNorm) if kind == "layer" else (nk.RMSNorm, nn.RMSNorm)
    layer = ours(size, eps=eps)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))
    other = theirs(size, eps=eps)
    other.load_state_dict(layer.state_dict())
    if kind == "rms" or dtype == torch.float64:  # PyTorch does not mix these, or warns
        other = other.to(dtype)
        layer = layer.to(dtype)
    x = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
    dy = torch.randn_like(x)

    def truth(x: Tensor, *p: Tensor) -> Tensor:
        if kind == "layer":
            return reference.layer_norm(x, axes, *p, eps=eps)
        return reference.rms_norm(x, axes, *p, eps=eps)

    got = _with_gradients(lambda x, *p: layer(x), [x, *layer.parameters()], dy)
    torchs = _with_gradients(lambda x, *p: other(x), [x, *other.parameters()], dy)
    exact = _with_gradients(truth, [x, *layer.parameters()], dy)
    for a, t, p in zip(got, exact, torchs, strict=True):
        assert_accurate(a, t.detach(), p)


@pytest.mark.parametrize("name", ["BatchNorm2d", "SyncBatchNorm", "GhostBatchNorm2d", "Frozen"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_evaluation_by_memory(name: str, dtype: torch.dtype) -> None:
    frozen = name == "Frozen"
    plain = nn.BatchNorm2d(6)
    plain.running_mean.normal_()
    plain.running_var.uniform_(0.5, 2)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    if frozen:
        layer: nn.Module = nk.FrozenBatchNorm2d.from_batch_norm(plain)
    elif name == "GhostBatchNorm2d":
        layer = nk.GhostBatchNorm2d(6, 2)
    else:
        layer = getattr(nk, name)(6)
    layer.load_state_dict(plain.state_dict())
    plain.eval()
    layer.eval()
    for n in (1, 3, 4):
        x = torch.randn(n, 6, 3, 3, dtype=torch.float64).to(dtype).requires_grad_()
        dy = torch.randn_like(x)
        p = (plain.running_mean, plain.running_var, plain.weight, plain.bias)
        got = _with_gradients(layer, [x], dy)
        torchs = _with_gradients(plain if dtype != torch.float64 else plain.double(), [x], dy)
        plain.float()
        exact = _with_gradients(lambda x, p=p: reference.frozen_batch_norm(x, *p), [x], dy)
        for a, t, q in zip(got, exact, torchs, strict=True):
            assert_accurate(a, t.detach(), q)


@pytest.mark.parametrize("act", ["relu", "relu6", "silu", "gelu", ("leaky_relu", 0.2)], ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [*CASES, "LayerNorm", "RMSNorm", "Scale", "FrozenBatchNorm2d"])
def test_activation_and_residual(name: str, act: object, residual: bool, training: bool) -> None:
    """The fused form equals the layer, the addition and PyTorch's activation one after another."""
    from torch.nn import functional as F

    makers = {
        "LayerNorm": lambda c: nk.LayerNorm((c, 5, 4)),
        "RMSNorm": lambda c: nk.RMSNorm((c, 5, 4)),
        "Scale": nk.Scale,
        "FrozenBatchNorm2d": nk.FrozenBatchNorm2d,
    }
    make = makers[name] if name in makers else CASES[name].make
    fused, bare = make(4).double().train(training), make(4).double().train(training)
    fused.act = act
    apply = F.leaky_relu if isinstance(act, tuple) else getattr(F, str(act))
    extra = (0.2,) if isinstance(act, tuple) else ()
    x = torch.randn(4, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    r = torch.randn_like(x, requires_grad=True) if residual else None
    inputs = [x] if r is None else [x, r]
    dy = torch.randn_like(x)
    got = _with_gradients(lambda *_: fused(x, r), inputs, dy)
    z_plus = (lambda: bare(x)) if r is None else (lambda: bare(x) + r)
    expected = _with_gradients(lambda *_: apply(z_plus(), *extra), inputs, dy)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert f"act={act!r}" in repr(fused)
