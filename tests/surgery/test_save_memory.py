"""save_memory: what is dropped, that gradients stay the same bits, and that nothing stays alive."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import normkit as nk
from benchmarks.networks import BasicBlock, Bottleneck, DenseNet, MobileNetV2, ResNet
from normkit.bench.memory import live_bytes
from normkit.compat import release
from normkit.kernels import cpu
from normkit.surgery.memory import hooks
from tests.few import few

pytestmark = [
    pytest.mark.skipif(cpu.fused is None, reason=cpu.reason or "built"),
    pytest.mark.skipif(release(torch.__version__) < (2, 8), reason="needs torch 2.8"),
]

Grads = dict[str, Tensor]


def step(model: nn.Module, *inputs: Tensor) -> tuple[Tensor, Grads]:
    """Return the output and all gradients of one step, those of the inputs too."""
    model.zero_grad()
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    out = model(*inputs)
    out.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    grads |= {str(i): x.grad for i, x in enumerate(inputs) if x.grad is not None}
    return out.detach(), grads


def kept_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Return how many bytes a forward pass leaves allocated."""
    return live_bytes(lambda: model(*inputs))


def assert_same_bits(a: tuple[Tensor, Grads], b: tuple[Tensor, Grads]) -> None:
    assert torch.equal(a[0], b[0])
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        assert torch.equal(a[1][name], b[1][name]), name


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def fused() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nk.BatchNorm2d(16, act="relu"),
        nn.Conv2d(16, 16, 3, padding=1), nk.BatchNorm2d(16, act="silu"),
        nn.Conv2d(16, 4, 3, padding=1),
    )  # fmt: skip


X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_gradients_have_the_same_bits_and_less_is_kept() -> None:
    model = fused()
    before, kept = step(model, X), kept_bytes(model, X)
    handle = nk.save_memory(model)
    assert "2 changed" in str(handle)
    assert_same_bits(step(model, X), before)
    outputs = 2 * 4 * 16 * 16 * 16 * 4
    assert kept_bytes(model, X) < kept - 0.95 * outputs
    handle.undo()
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert kept_bytes(model, X) == pytest.approx(kept, abs=4096)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm2d": lambda: nk.BatchNorm2d(16, act="gelu"),
    "no affine": lambda: nk.BatchNorm2d(16, affine=False, act="relu"),
    "no bias": lambda: nk.BatchNorm2d(16, bias=False, act=("leaky_relu", 0.1)),
    "relu6": lambda: nk.BatchNorm2d(16, act="relu6"),
    "negative slope": lambda: nk.BatchNorm2d(16, act=("leaky_relu", -0.5)),
    "cumulative": lambda: nk.BatchNorm2d(16, momentum=None),
    "GroupNorm": lambda: nk.GroupNorm(4, 16, act="silu"),
    "InstanceNorm2d": lambda: nk.InstanceNorm2d(16, affine=True, act="relu"),
    "LayerNorm2d": lambda: nk.LayerNorm2d(16, act="gelu"),
    "LayerNorm": lambda: nk.LayerNorm([12, 12]),
    "RMSNorm": lambda: nk.RMSNorm([12, 12]),
    "GhostBatchNorm2d": lambda: nk.GhostBatchNorm2d(16, 2),
    "FrozenBatchNorm2d": lambda: nk.FrozenBatchNorm2d(16),
    "evaluation": lambda: nk.BatchNorm2d(16, act="relu").eval(),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name: str, layout: torch.memory_format, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), LAYERS[name](), nn.Conv2d(16, 16, 3))
    with torch.no_grad():
        for p in model[1].parameters():
            p.copy_(torch.randn_like(p))
    model = model.to(dtype=dtype, memory_format=layout)
    x = torch.randn(4, 3, 14, 14).to(dtype=dtype, memory_format=layout) + 3
    before, kept = step(model, x), kept_bytes(model, x)
    nk.save_memory(model)
    assert_same_bits(step(model, x), before)
    copied = name in ("LayerNorm", "RMSNorm") and layout is torch.channels_last
    output = 0 if copied else 4 * 16 * 12 * 12 * x.element_size()
    assert kept_bytes(model, x) <= kept - 0.9 * output


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 3, 33, 31), (64, 3, 9, 9), (7, 3, 64, 50)])
@pytest.mark.parametrize("channels", [1, 5, 67])
def test_shapes_that_kernels_walk_in_other_ways(shape: tuple[int, ...], channels: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, channels, 1), nk.BatchNorm2d(channels, act="silu"), nn.Conv2d(channels, 2, 1)
    )
    x = torch.randn(shape)
    before = step(model, x)
    nk.save_memory(model)
    assert_same_bits(step(model, x), before)


def test_rows_before_linear_layers() -> None:
    model = nn.Sequential(
        nn.Linear(24, 32), nk.LayerNorm(32, act="gelu"), nn.Linear(32, 32, bias=False),
        nk.RMSNorm(32), nn.Linear(32, 8),
    )  # fmt: skip
    x = torch.randn(5, 7, 24)
    before, kept = step(model, x), kept_bytes(model, x)
    nk.save_memory(model)
    assert_same_bits(step(model, x), before)
    assert kept_bytes(model, x) < kept - 0.9 * 2 * 5 * 7 * 32 * 4


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", ["transposed", "nested"])
def test_rows_that_are_not_contiguous(kind: str) -> None:
    model = nn.Sequential(nk.LayerNorm(8), nk.LayerNorm(8))
    x = torch.randn(4, 8, 5).transpose(1, 2)
    if kind == "nested":
        x = torch.nested.nested_tensor([torch.randn(2, 3, 8), torch.randn(4, 2, 8)])
    expected = model(x)
    nk.save_memory(model)
    for a, b in zip(model(x).unbind(), expected.unbind(), strict=True):
        assert torch.equal(a, b)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], float, float]] = {
    "resnet18": (lambda: ResNet(BasicBlock, (2, 2, 2, 2), width=0.25, classes=10), 0.2, 0.3),
    "resnet50": (lambda: ResNet(Bottleneck, (1, 2, 2, 1), width=0.25, classes=10), 0.1, 0.3),
    "densenet": (lambda: DenseNet((2, 3), width=0.5, classes=10), 0.35, 0.35),
    "mobilenet": (lambda: MobileNetV2(width=0.5, classes=10, stages=4), 0.2, 0.2),
}


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks(name: str, blocks: bool) -> None:
    make, *shares = NETWORKS[name]
    model = make()
    nk.accelerate(model)
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    x = torch.randn(4, 3, 64, 64)
    before, kept = step(model, x), kept_bytes(model, x)
    nk.save_memory(model, blocks=blocks)
    assert_same_bits(step(model, x), before)
    assert kept_bytes(model, x) < kept * (1 - shares[blocks])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_pytorch_and_portable_operations(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "fused", None)
    monkeypatch.setattr(cpu, "_fix", "")
    test_every_layer(name, torch.contiguous_format, dtype)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrapped", [False, True])
def test_distributed(wrapped: bool) -> None:
    model = nn.Sequential(fused(), nk.SyncBatchNorm(4, act="relu"), nn.Conv2d(4, 4, 1))
    before = step(DistributedDataParallel(copy.deepcopy(model)), X)
    if wrapped:
        parallel = DistributedDataParallel(model)
        assert len(nk.save_memory(parallel).changed) == 3
    else:
        nk.save_memory(model)
        parallel = DistributedDataParallel(model)
    for _ in range(2):
        assert_same_bits(step(parallel, X), before)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.reset_running_stats()


def test_compiled_and_exported_afterwards() -> None:
    model = fused()
    before = step(model, X)
    nk.save_memory(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with pytest.warns(UserWarning, match="saves nothing in what is compiled.*budget") as told:
        after = step(compiled, X)
        step(compiled, X)
    assert len(told) == 1  # while it compiles, not in each step
    torch.testing.assert_close(after[0], before[0])
    for (name, a), b in zip(after[1].items(), before[1].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)
    torch.compiler.reset()
    exported = torch.export.export(model.eval(), (X,)).module()
    torch.testing.assert_close(exported(X), model(X))
    torch.testing.assert_close(torch.jit.trace(model, X)(X), model(X))


def compiled_model(model: nn.Sequential) -> Callable[..., Tensor]:
    return torch.compile(model, backend="aot_eager", fullgraph=True)


def compiled_part(model: nn.Sequential) -> Callable[..., Tensor]:
    model[1].compile(backend="aot_eager")
    return model


def compiled_child(model: nn.Sequential) -> Callable[..., Tensor]:
    model[3] = torch.compile(model[3], backend="aot_eager")
    return model


@pytest.mark.parametrize("training", few([True, False], lambda training: training))
@pytest.mark.parametrize("tool", [compiled_model, compiled_part, compiled_child])
def test_compiled_afterwards_is_told(tool: Callable[..., Any], training: bool) -> None:
    model = fused().train(training)
    nk.save_memory(model)
    with pytest.warns(UserWarning, match="saves nothing in what is compiled") as told:
        run = tool(model)
        for _ in range(3):
            run(X).sum().backward()
    assert len(told) == 1


def test_nothing_is_told_where_nothing_would_be_saved() -> None:
    model = fused()
    nk.save_memory(model)
    with torch.no_grad():
        compiled_model(model)(X)
        compiled_part(copy.deepcopy(model))(X)
    torch.export.export(model, (X,), strict=True)
    torch.export.export(model, (X,), strict=False)


FOLLOWING: dict[str, Callable[[bool], nn.Module]] = {
    "ReLU": nn.ReLU, "ReLU6": nn.ReLU6, "SiLU": nn.SiLU,
    "LeakyReLU": lambda inplace: nn.LeakyReLU(0.2, inplace),
    "GELU": lambda _: nn.GELU(), "tanh GELU": lambda _: nn.GELU("tanh"), "Hardswish": nn.Hardswish,
    "Hardtanh": lambda inplace: nn.Hardtanh(-0.5, 1.5, inplace=inplace),
}  # fmt: skip


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", FOLLOWING)
def test_activations_that_forward_calls(name: str, inplace: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 16, 3), nk.BatchNorm2d(16)
            self.act, self.last = FOLLOWING[name](inplace), nn.Conv2d(16, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act(self.norm(self.first(x))))

    model = Model()
    before, kept = step(model, X), kept_bytes(model, X)
    nk.save_memory(model)
    assert_same_bits(step(model, X), before)
    # Autograd clones the input of some that are in place.
    clones = inplace and name in ("SiLU", "Hardswish")
    outputs = 1 if clones or name in ("ReLU", "LeakyReLU") or inplace else 2
    assert kept_bytes(model, X) < kept - 0.9 * outputs * 4 * 16 * 14 * 14 * 4


def test_running_statistics_move_once() -> None:
    model = fused()
    other = copy.deepcopy(model)
    nk.save_memory(model)
    for m in (model, other):
        step(m, X)
    for a, b in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


class Changed(nn.Module):
    """A norm whose output is changed before it is read."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nk.BatchNorm2d(8)
        self.next, self.change = nn.Conv2d(8, 4, 3), change

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.next(self.change(self.norm(h), h))


def under_no_grad(y: Tensor, _: Tensor) -> Tensor:
    with torch.no_grad():
        y.mul_(2)
    return y


def no_grad_then_relu(y: Tensor, _: Tensor) -> Tensor:
    return F.relu(under_no_grad(y, _), inplace=True)


def no_grad_then_new_relu(y: Tensor, _: Tensor) -> Tensor:
    return F.relu(under_no_grad(y, _))


def no_grad_then_silu(y: Tensor, _: Tensor) -> Tensor:
    return F.silu(under_no_grad(y, _))


def relu_then_no_grad(y: Tensor, _: Tensor) -> Tensor:
    return under_no_grad(F.silu(y), _)


def added(y: Tensor, h: Tensor) -> Tensor:
    y += h
    return F.relu_(y)


def added_scaled(y: Tensor, h: Tensor) -> Tensor:
    return F.relu_(y.add_(h, alpha=2))


def added_alone(y: Tensor, h: Tensor) -> Tensor:
    y += h
    return y


def added_anew(y: Tensor, h: Tensor) -> Tensor:
    return F.relu(y + h)


def added_broadcast(y: Tensor, h: Tensor) -> Tensor:
    y += h.mean((2, 3), keepdim=True)
    return F.relu_(y)


def added_twice(y: Tensor, h: Tensor) -> Tensor:
    return F.relu_(y.add_(h).add_(h))


def no_grad_between(y: Tensor, h: Tensor) -> Tensor:
    return F.relu_(under_no_grad(y.add_(h), h))


def identity_changed(y: Tensor, h: Tensor) -> Tensor:
    z = F.silu(y)
    y = y + 1
    y += under_no_grad(z, h)
    return F.relu_(y)


def itself(y: Tensor, _: Tensor) -> Tensor:
    y += y
    return F.relu_(y)


def multiplied(y: Tensor, _: Tensor) -> Tensor:
    return y.mul_(2)


def a_part(y: Tensor, _: Tensor) -> Tensor:
    F.relu_(y[:, :4])
    return y


def split(y: Tensor, _: Tensor) -> Tensor:
    a, b = y.chunk(2, 1)
    return torch.cat([b, a], 1)


def transposed(y: Tensor, _: Tensor) -> Tensor:
    return y.transpose(2, 3)


def flat(y: Tensor, _: Tensor) -> Tensor:
    return y.flatten(2).reshape(y.shape)


def twice_relu(y: Tensor, _: Tensor) -> Tensor:
    return F.relu_(F.silu(F.relu(y))) + y


CHANGES = [
    under_no_grad, no_grad_then_relu, no_grad_then_new_relu, no_grad_then_silu, relu_then_no_grad,
    added, added_scaled, added_alone, added_anew, added_broadcast, added_twice, no_grad_between,
    identity_changed, itself, multiplied, a_part, split, transposed, flat, twice_relu,
]  # fmt: skip


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_changed_outputs_are_no_outputs(
    change: Callable[[Tensor, Tensor], Tensor], blocks: bool
) -> None:
    """Each of these was, or could be, taken for the layer's output, with wrong gradients."""
    model = Changed(change)
    with torch.no_grad():
        model.norm.weight.uniform_(-2, 2)
        model.norm.bias.normal_()
    before = step(model, X)
    nk.save_memory(model, blocks=blocks)
    assert_same_bits(step(model, X), before)


class Residual(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nk.BatchNorm2d(8, act=act) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x), residual=x)
        return x


@pytest.mark.parametrize("act", ["relu", "silu", None, ("leaky_relu", 0.2), "relu6"], ids=str)
def test_blocks_along_a_stage(act: Any) -> None:
    model = Residual(act)
    before, kept = step(model, X), kept_bytes(model, X)
    handle = nk.save_memory(model)
    assert_same_bits(step(model, X), before)
    handle.undo()
    nk.save_memory(model, blocks=True)
    assert_same_bits(step(model, X), before)
    assert kept_bytes(model, X) < kept - 2.9 * 4 * 8 * 16 * 16 * 4


@pytest.mark.parametrize("blocks", [False, True])
def test_nothing_stays_alive(blocks: bool) -> None:
    # So many classes that an output which stays alive, held by a frame, is noticed.
    model = ResNet(BasicBlock, (1, 1, 1, 1), width=0.25, classes=1000)
    nk.accelerate(model)
    nk.save_memory(model, blocks=blocks)
    step(model, X)
    model.zero_grad()
    gc.disable()
    try:

        def again() -> Tensor:
            loss = model(X).sum()
            loss.backward()
            model.zero_grad()
            return loss

        # The loss alone; without the collector, so that no cycle was left.
        again()
        assert live_bytes(again) < 1024
    finally:
        gc.enable()


def test_a_partial_backward_leaves_nothing_either() -> None:
    model = Residual("relu")
    nk.save_memory(model, blocks=True)
    loss = model(X).sum()

    def partly() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, model.convs[2].bias, retain_graph=True)

    partly()
    assert live_bytes(partly) < 1024


def test_several_passes_over_one_graph() -> None:
    model = fused()
    nk.save_memory(model)
    out = model(X).square().sum()
    first = torch.autograd.grad(out, model.parameters(), retain_graph=True)
    second = torch.autograd.grad(out, model.parameters(), retain_graph=True)
    third = torch.autograd.grad(out, model.parameters())
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, model.parameters())


def test_double_backward() -> None:
    model = fused().double()
    x = X.double()

    def penalty() -> list[Tensor]:
        inputs = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(model(inputs).square().sum(), inputs, create_graph=True)
        return list(torch.autograd.grad(g.square().sum(), model.parameters(), allow_unused=True))

    before = penalty()
    nk.save_memory(model)
    for a, b in zip(before, penalty(), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_parameters_changed_meanwhile_raise_or_do_not_count(name: str) -> None:
    model = fused()
    before = step(model, X)
    nk.save_memory(model)
    model.zero_grad()
    x = X.clone().requires_grad_()
    out = model(x).square().sum()
    with torch.no_grad():
        getattr(model[3], name).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        out.backward()
    model.zero_grad()
    with torch.no_grad():
        getattr(model[3], name).sub_(1)
    assert_same_bits(step(model, X), before)


def test_an_input_changed_meanwhile_raises() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = fused()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.body[0](x)
            return self.body[2](self.body[1](h)), h

    model = Model()
    nk.save_memory(model)
    y, h = model(X)
    h.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        y.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_inside_and_around(reentrant: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner, self.head = nn.Conv2d(3, 3, 1), fused(), nn.Conv2d(4, 4, 1)
            self.norm = nk.BatchNorm2d(4, act="relu")

        def forward(self, x: Tensor) -> Tensor:
            h = checkpoint(self.inner, self.stem(x), use_reentrant=reentrant)
            return self.head(self.norm(h))

    model = Model()
    before = step(model, X)
    nk.save_memory(model)
    assert_same_bits(step(model, X), before)
    x = X.clone().requires_grad_()
    around = fused()
    around.load_state_dict(model.inner.state_dict())
    plain = step(around, x)
    nk.save_memory(around)
    around.zero_grad()
    out = checkpoint(around, x, use_reentrant=reentrant)
    out.square().sum().backward()
    assert torch.equal(out, plain[0])
    for name, p in around.named_parameters():
        assert p.grad is not None and torch.equal(p.grad, plain[1][name])


def test_a_checkpoint_around_keeps_what_it_keeps() -> None:
    model = fused()
    x = X.clone().requires_grad_()
    before = live_bytes(lambda: checkpoint(model, x, use_reentrant=False))
    nk.save_memory(model)
    assert live_bytes(lambda: checkpoint(model, x, use_reentrant=False)) <= before + 4096


def test_autocast() -> None:
    model = fused()
    with torch.autocast("cpu", torch.bfloat16):
        before = step(model, X)
    nk.save_memory(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(step(model, X), before)


class Interrupted(nn.Module):
    """Ctrl-C while training."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise KeyboardInterrupt
        return x


def test_undo_after_an_interrupt_leaves_no_hooks() -> None:
    model = nn.Sequential(fused(), Interrupted())
    handle = nk.save_memory(model)
    with pytest.raises(KeyboardInterrupt):
        model(X)
    handle.undo()
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


def test_undo_within_a_forward_pass_leaves_no_hooks() -> None:
    class Undoing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            handle.undo()
            return x

    model = nn.Sequential(fused(), Undoing())
    handle = nk.save_memory(model)
    model(X)
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


def test_what_runs_after_an_interrupt_is_not_recorded() -> None:
    model = nn.Sequential(fused(), Interrupted())
    nk.save_memory(model)
    with pytest.raises(KeyboardInterrupt):
        model(X)
    (call,) = hooks._thread.calls
    nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))(torch.randn(2, 4))
    assert call.recorder is not None and not call.recorder._values
    model.eval()(X)
    assert not hooks._thread.calls


@pytest.mark.parametrize("name", ["Relu", "Silu", "Gelu", "LeakyRelu", "Hardtanh", "Hardswish"])
def test_functions_of_a_user_are_not_pytorchs(name: str) -> None:
    """The node of a function of this name is called as PyTorch's, but for the number."""

    class Cubed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 3 * x**2 * dy

    function = type(name, (Cubed,), {})

    class Applied(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function.apply(x)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nk.BatchNorm2d(8), Applied(), nn.Conv2d(8, 4, 3))
    before = step(copy.deepcopy(model), X)
    nk.save_memory(model)
    assert_same_bits(step(model, X), before)


@pytest.mark.parametrize(
    "layer",
    [nk.LayerNorm(8, memory_efficient=True), nk.FilterResponseNorm2d(8), nk.HalfInstanceNorm2d(8),
     nk.AdaptiveLayerNorm(8), nk.AdaptiveGroupNorm(2, 8)],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_layers_that_gain_nothing_are_not_listed_as_changed(layer: nn.Module) -> None:
    handle = nk.save_memory(nn.Sequential(layer))
    assert not handle.changed
    assert handle.skipped[0].why


def test_a_stage_of_many_blocks_is_computed_again_without_recursing_too_far() -> None:
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nk.BatchNorm2d(2) for _ in range(300))

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                out = norm(x)
                out += x
                x = torch.relu_(out)
            return x

    model = nn.Sequential(nn.Conv2d(3, 2, 1), Stage(), nn.Conv2d(2, 1, 1))
    before = step(copy.deepcopy(model), X)
    nk.save_memory(model, blocks=True)
    assert_same_bits(step(model, X), before)


def test_an_interrupt_switches_it_off_at_the_next_call() -> None:
    model = nn.Sequential(fused(), Interrupted())
    nk.save_memory(model)
    with pytest.raises(KeyboardInterrupt):
        model(X)
    model.eval()
    before = step(copy.deepcopy(model), X)
    assert_same_bits(step(model, X), before)
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


def test_an_error_within_the_model_switches_it_off() -> None:
    model = fused()
    nk.save_memory(model)
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 5, 4, 4))
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    before = step(copy.deepcopy(model), X)
    assert_same_bits(step(model, X), before)


def accumulated(model: nn.Module) -> list[Tensor]:
    """Return gradients of several forward passes before the first backward pass."""
    losses = [model(X + i).square().sum() for i in range(3)]
    grads = [torch.autograd.grad(loss, list(model.parameters())) for loss in reversed(losses)]
    return [torch.stack(g).sum(0) for g in zip(*grads, strict=True)]


def test_accumulation_threads_and_hooks() -> None:
    model = fused()
    before = accumulated(copy.deepcopy(model))
    nk.save_memory(model)
    results = {0: accumulated(copy.deepcopy(model))}

    def work(i: int) -> None:
        results[i] = accumulated(copy.deepcopy(model))

    threads = [threading.Thread(target=work, args=(i,)) for i in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.autograd.graph.save_on_cpu():
        results[3] = accumulated(copy.deepcopy(model))
    model[1].register_full_backward_hook(lambda *_: None)
    results[4] = accumulated(model)
    assert len(results) == 5
    for result in results.values():
        assert all(torch.equal(a, b) for a, b in zip(before, result, strict=True))


def test_copies_and_pickles_save_too() -> None:
    model = fused()
    kept = kept_bytes(model, X)
    nk.save_memory(model)
    saved = kept_bytes(model, X)
    assert saved < kept
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (
        copy.deepcopy(model), pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):  # fmt: skip
        assert kept_bytes(other, X) == pytest.approx(saved, abs=4096)
    assert model.state_dict().keys() == fused().state_dict().keys()


def test_models_within_models() -> None:
    model = nn.Sequential(fused(), nk.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    before = step(model, X)
    nk.save_memory(model[0])
    nk.save_memory(model)
    assert_same_bits(step(model, X), before)


def test_zero_changed_says_why() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    handle = nk.save_memory(model)
    assert str(handle).splitlines()[0] == (
        "0 changed by save_memory: a layer of torch.nn: call normkit.accelerate(model) first"
    )
    assert not model._forward_pre_hooks
    nk.accelerate(model)
    nk.save_memory(model)
    assert "computed again already" in str(nk.save_memory(model))
    with pytest.raises(nk.OptionError, match=r"blocks=False.*received blocks=True.*undo"):
        nk.save_memory(model, blocks=True)
    assert "nothing to change" in str(nk.save_memory(nn.Linear(1, 1)))


def test_a_compiled_model_is_refused() -> None:
    model = fused()
    for compiled in (torch.compile(model, backend="eager"), nn.Sequential(model)):
        if isinstance(compiled, nn.Sequential):
            model.compile(backend="eager")
        with pytest.raises(nk.OptionError, match="activation_memory_budget"):
            nk.save_memory(compiled)


def test_without_gradients_nothing_is_recorded() -> None:
    model = fused()
    nk.save_memory(model)
    with torch.no_grad():
        model(X)
    with torch.inference_mode():
        model(X)
    assert torch.func.functional_call(model, dict(model.named_parameters()), X).shape[1] == 4
