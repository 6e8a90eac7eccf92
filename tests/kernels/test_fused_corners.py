"""What reviews of the fused kernels found: each was wrong once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.pools import PER_CHANNEL, PER_POSITION, Pool
from normkit.kernels import cpu
from normkit.kernels.call import BatchStats, Call, FixedStats
from normkit.kernels.cpu import fused as extension
from normkit.kernels.dispatch import normalize
from tests.kernels.builds import BUILDS

pytestmark = pytest.mark.skipif(cpu.fused is None, reason=cpu.reason or "built")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    assert extension is not None
    build, cache = extension.in_use(), extension.assume_cache(1)
    extension.assume_cache(cache)
    yield
    extension.use(build)
    extension.assume_cache(cache)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("pool", [PER_CHANNEL, Pool("group", 1), Pool("group", 3)], ids=str)
def test_long_runs_that_begin_anywhere_past_the_caches(
    build: str, dtype: torch.dtype, pool: Pool
) -> None:
    assert extension is not None
    extension.use(build)
    x = torch.randn(3, 3, 2049).to(dtype).requires_grad_()
    dy = torch.randn(3, 3, 2049).to(dtype)
    found = []
    for cache in (2**60, 0):
        extension.assume_cache(cache)
        y = normalize(Call(x, Spec(pool, 1e-5, Act("relu")))).y
        found.append((y.detach(), *torch.autograd.grad(y, x, dy)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("pool", [PER_CHANNEL, PER_POSITION, Pool("group", 2)], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_relu6_is_cut_at_both_ends(build: str, dtype: torch.dtype, pool: Pool, last: bool) -> None:
    """New with it: the upper limit, which values of the other tests do not reach."""
    assert extension is not None
    extension.use(build)
    x, r, dy = torch.randn(3, 4, 6, 7, 5).to(dtype).unbind()
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    w = torch.full((6,), 8.0)
    for residual in (None, r):
        for fixed in (False, True) if pool is PER_CHANNEL else (False,):
            stats = FixedStats(torch.zeros(6), torch.ones(6)) if fixed else BatchStats()
            found = []
            for act in (Act("relu6"), None):
                leaves = [t.clone().requires_grad_() for t in (x, w)]
                y = normalize(Call(leaves[0], Spec(pool, 1e-5, act), leaves[1], None, residual,
                                   stats)).y  # fmt: skip
                y = y if act else F.relu6(y)
                found.append((y.detach(), *torch.autograd.grad(y, leaves, dy)))
            assert float(found[0][0].max()) == 6 and float(found[0][0].min()) == 0
            # Rounded to a half type, values become 6 that are not, and lose their gradient.
            compared = 3 if dtype in (torch.float32, torch.float64) else 1
            torch.testing.assert_close(*(one[:compared] for one in found))


def _pairs() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    x, g = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64).unbind()
    ours = nk.BatchNorm2d(3).double()
    return ours, nn.BatchNorm2d(3).double(), x.requires_grad_(), g


def _zeros(y: Tensor, x: Tensor, g: Tensor) -> Tensor:
    zeros: Tensor = torch._efficientzerotensor(g.shape, dtype=g.dtype)
    return torch.autograd.grad(y, x, zeros)[0]


KINDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "batched": lambda y, x, g: torch.autograd.grad(
        y, x, torch.stack([g, 2 * g, g.flip(0)]), is_grads_batched=True
    )[0],
    "negated": lambda y, x, g: torch.autograd.grad(y, x, torch._neg_view(g))[0],
    "all zero": _zeros,
    "expanded": lambda y, x, g: torch.autograd.grad(y, x, g[:1].expand_as(g))[0],
    "of another layout": lambda y, x, g: torch.autograd.grad(
        y, x, g.contiguous(memory_format=torch.channels_last)
    )[0],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_of_any_kind(kind: str) -> None:
    ours, torchs, x, g = _pairs()
    torch.testing.assert_close(KINDS[kind](ours(x), x, g), KINDS[kind](torchs(x), x, g))


def test_a_vectorized_jacobian() -> None:
    ours, torchs, x, _ = _pairs()
    x = x.detach()[:2, :, :2, :2]
    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(ours, x, vectorize=True), jacobian(torchs, x))


@pytest.mark.parametrize("act", [None, "relu", "silu"])
def test_a_hook_may_hand_back_another_layout(act: str | None) -> None:
    layer = nk.BatchNorm2d(3, act=act).double()
    x, r, g = torch.randn(3, 4, 3, 5, 6, dtype=torch.float64).unbind()
    leaves = [x.requires_grad_(), r.requires_grad_()]

    def turned(t: Tensor) -> Tensor:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() == 4 else t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, turned):
        y = layer(x, residual=r)
    expected = torch.autograd.grad(layer(x, residual=r), leaves, g)
    torch.testing.assert_close(torch.autograd.grad(y, leaves, g), expected)


@pytest.mark.parametrize(
    "change", [lambda t: t.float(), lambda t: t[..., :-1]], ids=["type", "size"]
)
def test_a_hook_may_not_hand_back_another_tensor(change: Callable[[Tensor], Tensor]) -> None:
    layer = nk.BatchNorm2d(3).double()
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64, requires_grad=True)

    def changed(t: Tensor) -> Tensor:
        return change(t) if t.dim() == 4 else t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, changed):
        y = layer(x)
    with pytest.raises(RuntimeError, match="hook on saved tensors"):
        y.sum().backward()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (8, 64, 3, 3)], ids=str)
def test_given_moments_pass_no_infinity_on(shape: tuple[int, ...], last: bool) -> None:
    x = torch.randn(shape)
    x[0, 0, 0, 0], x[0, 1, 0, 0] = torch.inf, torch.nan
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    layer = nk.BatchNorm2d(shape[1]).eval()
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full(shape, 1 / (1 + 1e-5) ** 0.5))


@pytest.mark.parametrize("residual", [False, True])
def test_a_bias_that_is_not_read_may_change(residual: bool) -> None:
    layer = nk.BatchNorm2d(3, act="relu" if residual else None)
    x = torch.randn(4, 3, 5, 5)
    layer(x, residual=x if residual else None).sum().backward()
    expected = layer.bias.grad
    layer.zero_grad()
    y = layer(x, residual=x if residual else None)
    with torch.no_grad():
        layer.bias.add_(1)
    y.sum().backward()
    assert expected is not None
    torch.testing.assert_close(layer.bias.grad, expected)


def test_statistics_stay_where_saving_fails() -> None:
    layer = nk.BatchNorm2d(3)

    def fails(t: Tensor) -> Tensor:
        raise MemoryError("no room to save")

    with (
        torch.autograd.graph.saved_tensors_hooks(fails, lambda t: t),
        pytest.raises(MemoryError, match="no room"),
    ):
        layer(torch.randn(4, 3, 5, 5, requires_grad=True))
    assert layer.num_batches_tracked == 0
    assert torch.equal(layer.running_mean, torch.zeros(3))


@pytest.mark.parametrize("channels", [64, 768, 4096])
@pytest.mark.parametrize("far", [30.0, 1e4])
def test_channels_that_lie_apart_from_the_rest(channels: int, far: float) -> None:
    """The first guess of the mean comes from some channels; here from the worst."""
    x = torch.randn(1, channels, 5, 20)
    x[:, :: max(1, channels // 32)] += far
    truth = normalize(Call(x.double(), Spec(PER_POSITION, 1e-5))).y
    permuted = x.permute(0, 2, 3, 1)
    torchs = nn.functional.layer_norm(permuted, (channels,), eps=1e-5).permute(0, 3, 1, 2)
    ours = normalize(Call(x, Spec(PER_POSITION, 1e-5))).y
    size = float(truth.abs().max())
    error = float((ours - truth).abs().max())
    assert error <= 2 * float((torchs - truth).abs().max()) + size * 2**-24


@pytest.mark.parametrize("shape", [(30000, 64, 2), (8000, 256, 2)], ids=str)
def test_many_samples_of_few_positions(shape: tuple[int, ...]) -> None:
    """Strips of the batch: sums over samples must not grow without end in float."""
    x, dy = torch.rand(2, *shape).unbind()
    x = x + 3
    results = []
    for layer, dtype in (
        (nk.BatchNorm1d, torch.float64), (nk.BatchNorm1d, torch.float32),
        (nn.BatchNorm1d, torch.float32),
    ):  # fmt: skip
        module = layer(shape[1], dtype=dtype)
        given = x.to(dtype).requires_grad_()
        y = module(given)
        y.backward(dy.to(dtype))
        results.append([y.detach(), given.grad, module.weight.grad, module.bias.grad])
    for truth, ours, torchs in zip(*results, strict=True):
        assert truth is not None and ours is not None and torchs is not None
        # torch's rounding where it is exact by luck: a unit in the last place of the largest.
        least = float(truth.abs().max()) * 2**-22
        assert (ours - truth).abs().max() <= 2 * (torchs - truth).abs().max() + least


@pytest.mark.parametrize("value", [-1e38, -1e4, -90.0, 90.0, 1e38])
def test_silu_far_out(value: float) -> None:
    x = torch.tensor([[value, 1.0]], requires_grad=True)
    zero, one = torch.zeros(2), torch.ones(2)
    y = normalize(Call(x, Spec(PER_CHANNEL, 0.0, Act("silu")), stats=FixedStats(zero, one))).y
    (dx,) = torch.autograd.grad(y.sum(), x)
    expected = nn.functional.silu(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(dx, torch.autograd.grad(expected.sum(), x)[0])


def test_only_the_residual_wants_a_gradient() -> None:
    assert extension is not None
    extension.assume_cache(0)
    x, r = torch.randn(2, 8, 64, 4, 4).unbind()
    r = r.contiguous(memory_format=torch.channels_last).requires_grad_()
    x = x.contiguous(memory_format=torch.channels_last)
    y = nk.BatchNorm2d(64, act="relu")(x, residual=r)
    y.sum().backward()
    assert r.grad is not None
    assert torch.equal(r.grad, (y > 0).to(y.dtype))


def test_a_subclass_that_checks_more_is_asked() -> None:
    class Strict(nk.BatchNorm2d):
        def _check_input_dim(self, input: Tensor) -> None:
            super()._check_input_dim(input)
            if input.shape[-1] != input.shape[-2]:
                raise ValueError("square images only")

    layer = Strict(3)
    layer(torch.randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match="square"):
        layer(torch.randn(2, 3, 4, 5))
