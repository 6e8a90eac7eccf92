"""Corners where a layer once parted from torch.nn, or from the truth."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit.core import reference

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "BatchNorm2d": (lambda: nk.BatchNorm2d(4, act="silu"), (3, 4, 3, 3)),
    "GhostBatchNorm2d": (lambda: nk.GhostBatchNorm2d(4, 2, act="relu"), (4, 4, 3, 3)),
    "GroupNorm": (lambda: nk.GroupNorm(2, 4, act="gelu"), (3, 4, 3, 3)),
    "InstanceNorm2d": (lambda: nk.InstanceNorm2d(4, act="silu"), (3, 4, 3, 3)),
    "LayerNorm": (lambda: nk.LayerNorm(4), (3, 4)),
    "LayerNorm2d": (lambda: nk.LayerNorm2d(4, act="relu"), (3, 4, 3, 3)),
    "RMSNorm": (lambda: nk.RMSNorm(4), (3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivative_through_a_checkpoint(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make().double()
    found = []
    for wrap in (lambda x: layer(x), lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(1)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        (g,) = torch.autograd.grad(wrap(x).pow(3).sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.square().sum(), x)
        found.append(h)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("name", LAYERS)
def test_a_traced_graph_keeps_the_layer_as_one_node(name: str) -> None:
    make, shape = LAYERS[name]
    model = nn.Sequential(nn.Identity(), make())
    graph = torch.fx.symbolic_trace(model)
    assert [n.op for n in graph.graph.nodes].count("call_module") == 2
    x = torch.randn(shape)
    torch.testing.assert_close(graph.eval()(x), model.eval()(x))


def test_a_traced_residual() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nk.BatchNorm2d(3, act="relu")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x * 2, residual=x)

    block, x = Block().eval(), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(torch.fx.symbolic_trace(block)(x), block(x))


def test_lazy_layers_without_tensors_and_loaded_before_use() -> None:
    x = torch.randn(2, 5, 3, 3)
    for theirs, ours in ((nn.LazyBatchNorm2d, nk.LazyBatchNorm2d),):
        a = theirs(affine=False, track_running_stats=False)
        b = ours(affine=False, track_running_stats=False)
        torch.testing.assert_close(b(x), a(x))
        a, b = theirs(), ours(average="debiased")
        state = nn.BatchNorm2d(5).state_dict()
        a.load_state_dict(state)
        b.load_state_dict(state)
        torch.testing.assert_close(b(x), a(x))
        assert b.average == "debiased"


@pytest.mark.parametrize(
    "make",
    [
        lambda m: m.BatchNorm2d(3, affine=False, track_running_stats=False),
        lambda m: m.GroupNorm(2, 4, affine=False),
    ],
)
def test_without_tensors_any_number_of_channels_fits(make: Any) -> None:
    x = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(make(nk)(x), make(nn)(x))


@pytest.mark.parametrize("average", ["exponential", "cumulative", "debiased"])
def test_momentum_zero_holds_still(average: str) -> None:
    layer = nk.BatchNorm2d(3, average=average)
    layer(torch.randn(4, 3, 2, 2))
    held = layer.running_mean.clone()
    layer.momentum = 0.0
    layer(torch.randn(4, 3, 2, 2))
    assert torch.equal(layer.running_mean, held)


def test_average_and_momentum_are_checked_when_they_change() -> None:
    layer = nk.BatchNorm2d(3, average="debiased")
    with pytest.raises(nk.OptionError, match="average='mean'"):
        layer.average = "mean"
    assert layer.average == "debiased"
    with pytest.raises(nk.OptionError, match=r"momentum=1\.5"):
        layer.momentum = 1.5
    assert layer.momentum == 0.1


@pytest.mark.parametrize("act", [None, "relu"])
def test_gradient_of_an_evaluation_after_the_buffers_moved(act: str | None) -> None:
    """A teacher's evaluation, then a training step, then backward. PyTorch gets this wrong."""
    layer = nk.BatchNorm2d(3, act=act).eval()
    layer.running_mean.normal_()
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    dy = torch.randn_like(x)
    expected = torch.autograd.grad(layer(x), [x, layer.weight], dy)
    y = layer(x)
    layer.train()
    layer(torch.randn(4, 3, 2, 2) * 9)
    got = torch.autograd.grad(y, [x, layer.weight], dy)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_ghost_batches_compile_with_sizes_that_vary() -> None:
    layer = nk.GhostBatchNorm2d(3, 2)
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for n, h in ((4, 5), (6, 6), (3, 5)):
        x = torch.randn(n, 3, h, h)
        torch.testing.assert_close(compiled(x), twin(x))


@pytest.mark.parametrize("training", [True, False])
def test_permuted_input_gives_contiguous_output(training: bool) -> None:
    """(N, L, C) → permute → BatchNorm1d → view is a common line."""
    x = torch.randn(4, 5, 6).permute(0, 2, 1)
    assert nk.BatchNorm1d(6).train(training)(x).view(4, -1).shape == (4, 30)
    assert nk.GroupNorm(2, 6)(x).is_contiguous()
    assert nk.InstanceNorm1d(6)(x).is_contiguous()


def test_last_axis_norms_keep_channels_last() -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert nk.RMSNorm(5)(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["InstanceNorm2d", "LayerNorm2d", "GhostBatchNorm2d"])
def test_gradients_at_huge_deviations(name: str) -> None:
    layer = {
        "InstanceNorm2d": nk.InstanceNorm2d(4), "LayerNorm2d": nk.LayerNorm2d(4),
        "GhostBatchNorm2d": nk.GhostBatchNorm2d(4, 2),
    }[name]  # fmt: skip
    x = (torch.randn(4, 4, 3, 3) * 1e16).requires_grad_()
    wide = x.detach().double().requires_grad_()
    dy = torch.randn_like(x)
    truth = {
        "InstanceNorm2d": lambda x: reference.instance_norm(x),
        "LayerNorm2d": lambda x: reference.layer_norm_2d(x),
        "GhostBatchNorm2d": lambda x: reference.ghost_batch_norm(x, [2, 2]),
    }[name]
    (got,) = torch.autograd.grad(layer(x), x, dy)
    (expected,) = torch.autograd.grad(truth(wide), wide, dy.double())
    torch.testing.assert_close(got.double() * 1e16, expected * 1e16, rtol=1e-4, atol=1e-5)


def test_small_variance_is_remembered_as_it_is() -> None:
    """σ² far below ε: found again from 1/√(σ² + ε) it would have no digit left."""
    x = torch.randn(64, 3, 4, 4) * 1e-5
    for average in ("exponential", "debiased"):
        layer = nk.BatchNorm2d(3, momentum=1.0, average=average)
        layer(x)
        expected = x.double().transpose(0, 1).flatten(1).var(1)
        torch.testing.assert_close(layer.running_var.double(), expected, rtol=1e-4, atol=0)


def test_layer_norm_with_a_bias_and_no_weight() -> None:
    ours, theirs = nk.LayerNorm(4), nn.LayerNorm(4)
    for layer in (ours, theirs):
        layer.weight = None
    x = torch.randn(2, 4, requires_grad=True)
    torch.testing.assert_close(
        torch.autograd.grad(ours(x).pow(3).sum(), [x, ours.bias]),
        torch.autograd.grad(theirs(x).pow(3).sum(), [x, theirs.bias]),
    )


class _SolvedBackward(torch.autograd.Function):
    """Runs a layer for the first time within its backward, as implicit layers do."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.layer(ctx.saved_tensors[0].detach())
        return dy, None


def test_a_layer_that_only_runs_backward_still_counts() -> None:
    layer = nk.BatchNorm2d(3)
    for _ in range(2):
        x = torch.randn(4, 3, 2, 2, requires_grad=True)
        _SolvedBackward.apply(x, layer).sum().backward()
    assert int(layer.num_batches_tracked) == 2


def test_nested_tensors() -> None:
    parts = [torch.randn(n, 4) for n in (2, 3)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged)
    for ours, theirs in ((nk.LayerNorm(4), nn.LayerNorm(4)), (nk.RMSNorm(4), nn.RMSNorm(4))):
        ours.act = "relu"
        for a, b in zip(ours(x).unbind(), theirs(x).unbind(), strict=True):
            torch.testing.assert_close(a, F.relu(b))


def test_a_residual_of_another_type_widens_as_adding_does() -> None:
    x, r = torch.randn(2, 3, 4, 4).bfloat16(), torch.randn(2, 3, 4, 4)
    y = nk.BatchNorm2d(3, act="relu")(x, r)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, F.relu(nn.BatchNorm2d(3)(x.float()) + r))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("affine", [True, False])
def test_half_types_keep_their_moments_in_float32(dtype: torch.dtype, affine: bool) -> None:
    """Also where γ and β are of the half type themselves, or absent."""
    x = (torch.randn(16, 8, 6, 6) + 30).to(dtype)
    for layer in (nk.BatchNorm2d(8, affine=affine), nk.GroupNorm(2, 8, affine=affine)):
        truth = (
            reference.batch_norm(x)
            if isinstance(layer, nk.BatchNorm2d)
            else reference.group_norm(x, 2)
        )
        y = layer.to(dtype)(x).detach()
        error = float((y.double() - truth).abs().max())
        assert error <= 4 * torch.finfo(dtype).eps, (type(layer).__name__, error)


@pytest.mark.parametrize("slope", [0.0, -0.5, 2.0])
def test_any_slope(slope: float) -> None:
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    for make in (lambda: nk.BatchNorm2d(3), lambda: nk.LayerNorm2d(3)):
        layer = make().double()
        a, b = (x.clone().requires_grad_() for _ in range(2))
        F.leaky_relu(layer(a), slope).pow(2).sum().backward()
        layer.act = ("leaky_relu", slope)
        layer(b).pow(2).sum().backward()
        torch.testing.assert_close(b.grad, a.grad)


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm", "LayerNorm2d", "InstanceNorm2d"])
@pytest.mark.parametrize("act", [None, "relu"])
def test_no_more_is_saved_for_backward_than_by_torch(name: str, act: str | None) -> None:
    """Input, and the output where it tells the derivative; no mask, no copy, no residual."""
    layer = {
        "BatchNorm2d": nk.BatchNorm2d(4), "GroupNorm": nk.GroupNorm(2, 4),
        "LayerNorm2d": nk.LayerNorm2d(4), "InstanceNorm2d": nk.InstanceNorm2d(4),
    }[name]  # fmt: skip
    layer.act = act
    x = torch.randn(8, 4, 16, 16, requires_grad=True)
    residual = torch.randn_like(x, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x, residual)
    # Per-position moments of LayerNorm2d are a quarter of the input each here.
    small = 0.51 if name == "LayerNorm2d" else 0.05
    assert sum(saved.values()) <= (1 + (act is not None) + small) * x.nbytes


def test_frozen_loads_a_layer_without_affine() -> None:
    bn = nn.BatchNorm2d(3, affine=False)
    bn(torch.randn(4, 3, 2, 2))
    frozen = nk.FrozenBatchNorm2d(3)
    frozen.load_state_dict(bn.state_dict())
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(frozen(x), bn.eval()(x))


def test_frozen_keeps_float32_of_a_half_model() -> None:
    frozen = nk.FrozenBatchNorm2d.from_batch_norm(nn.BatchNorm2d(3).half())
    assert frozen.running_var.dtype == torch.float32


@pytest.mark.parametrize("make", [nk.FrozenBatchNorm2d, nk.Scale, nk.HalfInstanceNorm2d])
def test_made_on_meta_and_initialised_later(make: Any) -> None:
    layer = make(4, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    torch.testing.assert_close(layer.state_dict(), make(4).state_dict())
