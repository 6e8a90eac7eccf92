"""The way of the Triton kernels: which calls it takes, its graph, and compiled graphs."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import normkit as nk
from normkit.compat import tells_exporting
from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.pools import PER_CHANNEL, PER_POSITION, Pool
from normkit.kernels import compiled, cpu, operations
from normkit.kernels import triton as kernels
from normkit.kernels.call import BatchStats, Call, FixedStats
from normkit.kernels.compiled import Compiled
from normkit.kernels.dispatch import explain, normalize
from normkit.kernels.triton import gpu
from normkit.kernels.triton.gpu import TritonGPU
from normkit.kernels.triton.operations import KERNELS
from tests.few import few

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm2d": lambda: nk.BatchNorm2d(6, act="relu"),
    "GroupNorm": lambda: nk.GroupNorm(3, 6, act="silu"),
    "InstanceNorm2d": lambda: nk.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "LayerNorm": lambda: nk.LayerNorm(5, act="gelu"),
    "LayerNorm2d": lambda: nk.LayerNorm2d(6),
    "RMSNorm": lambda: nk.RMSNorm(5),
    "GhostBatchNorm2d": lambda: nk.GhostBatchNorm2d(6, 2),
    "BatchNorm2d in evaluation": lambda: nk.BatchNorm2d(6, act=("leaky_relu", 0.1)).eval(),
}
BATCH = Spec(PER_CHANNEL, 1e-5)


def _step(layer: nn.Module, x: Tensor, residual: Tensor, dy: Tensor) -> list[Tensor]:
    """Return output, gradients and buffers."""
    inputs = [t.detach().requires_grad_() for t in (x, residual)]
    y = layer(*inputs)
    grads = torch.autograd.grad(y, [*inputs, *layer.parameters()], dy)
    return [y.detach(), *grads, *(b.clone() for b in layer.buffers())]


@pytest.mark.parametrize("name", LAYERS)
def test_a_step_of_each_layer(name: str, by_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LAYERS[name]()
    x, residual, dy = torch.randn(3, 4, 6, 3, 5).unbind()
    wide = copy.deepcopy(layer).double()
    used: list[Call] = []
    run = TritonGPU.run

    def recorded(self: TritonGPU, call: Call) -> Any:
        used.append(call)
        return run(self, call)

    monkeypatch.setattr(TritonGPU, "run", recorded)
    values = _step(layer, x, residual, dy)
    assert len(used) == 1
    monkeypatch.setattr(kernels, "takes_cpu", False)
    truth = _step(wide, x.double(), residual.double(), dy.double())
    for a, b in zip(values, truth, strict=True):
        torch.testing.assert_close(a.to(b.dtype), b, rtol=1e-5, atol=1e-5)


def test_updated_buffers_have_a_new_version(by_triton: None) -> None:
    layer = nk.BatchNorm2d(6)
    squared = layer.running_mean.requires_grad_(False) * torch.ones(6, requires_grad=True)
    layer(torch.randn(4, 6, 3, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


def test_what_is_saved(by_triton: None) -> None:
    """The input, γ, β and four numbers for each pool; of an activation nothing."""
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    x, residual = torch.randn(2, 4, 6, 3, 3).unbind()
    x.requires_grad_()
    weight, bias = torch.randn(2, 6).unbind()
    for act, other in ((None, None), (Act("silu"), "residual"), (Act("relu"), "output")):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = normalize(Call(x, Spec(PER_CHANNEL, 1e-5, act), weight, bias, residual)).y
        pointers = {t.data_ptr() for t in saved if t.shape == x.shape}
        expected = {"residual": {residual.data_ptr()}, "output": {y.data_ptr()}}.get(other or "")
        assert pointers == {x.data_ptr()} | (expected or set())
        assert {t.shape for t in saved if t.shape != x.shape} == {(4, 6), (6,)}


@pytest.mark.parametrize("act", [None, Act("silu"), Act("relu6")], ids=str)
@pytest.mark.parametrize("fixed", [False, True])
def test_derivatives_of_the_backward(act: Act | None, fixed: bool, by_triton: None) -> None:
    x, residual, dy, ddx = torch.randn(4, 4, 6, 3, 3).unbind()
    weight, mean, var = torch.rand(3, 6).add(0.5).unbind()
    stats: Any = FixedStats(mean, var) if fixed else BatchStats()

    def second(dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, weight, residual, dy)]
        a, w, r, upstream = leaves
        y = normalize(Call(a, Spec(PER_CHANNEL, 1e-5, act), w, None, r, stats)).y
        (dx,) = torch.autograd.grad(y, a, upstream, create_graph=True)
        grads = torch.autograd.grad(dx, leaves, ddx.to(dtype), materialize_grads=True)
        return [t.double() for t in grads]

    for a, b in zip(second(torch.float32), second(torch.float64), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gradients_of_a_batch_of_losses(by_triton: None) -> None:
    x = torch.randn(4, 6, 3, 3, requires_grad=True)
    y = normalize(Call(x, Spec(PER_CHANNEL, 1e-5, Act("gelu")))).y
    dy = torch.randn(2, *y.shape)
    (together,) = torch.autograd.grad(y, x, dy, is_grads_batched=True, retain_graph=True)
    for one, each in zip(together, dy, strict=True):
        (alone,) = torch.autograd.grad(y, x, each, retain_graph=True)
        torch.testing.assert_close(one, alone, rtol=1e-5, atol=1e-5)


def test_incoming_gradients_of_any_layout(by_triton: None) -> None:
    """An expanded one, and one in the other memory format; neither is written to."""
    x = torch.randn(4, 6, 3, 3, requires_grad=True)
    y = normalize(Call(x, Spec(PER_POSITION, 1e-5, Act("silu")))).y
    one = torch.randn(4, 6, 1, 1).expand(4, 6, 3, 3)
    last = one.contiguous(memory_format=torch.channels_last)
    before = last.clone()
    grads = [torch.autograd.grad(y, x, t, retain_graph=True)[0] for t in (one, last)]
    assert torch.equal(*grads) and torch.equal(last, before)


def test_an_operation_in_place_may_follow(by_triton: None) -> None:
    x = torch.randn(4, 6, 3, 3, requires_grad=True)
    y = torch.relu_(normalize(Call(x, BATCH)).y)
    (dx,) = torch.autograd.grad(y.sum(), x)
    z = normalize(Call(x, Spec(PER_CHANNEL, 1e-5, Act("relu")))).y
    torch.testing.assert_close(dx, torch.autograd.grad(z.sum(), x)[0])


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode:
        yield mode


def _on_gpu(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


# Pool and shape, and whether 32 bits reach it: two sides of each limit.
LARGE: dict[Any, bool] = {
    (PER_CHANNEL, 2, 2**11, 2**10, 2**10 - 1): True,
    (PER_CHANNEL, 2, 2**11, 2**10, 2**10): False,
    (PER_POSITION, 2**19 - 1, 2, 2**10): True,
    (PER_POSITION, 2**19, 2, 2**10): False,
    (PER_POSITION, 1, 2**22 - 1, 4, 4): True,
    (PER_POSITION, 1, 2**22, 4, 4): False,
    (Pool("group"), 2, 2**26 - 1): True,
    (Pool("group"), 2, 2**26): False,
    (Pool("group"), 2**20 - 1, 2**11, 2, 2): True,
    (Pool("group"), 2**20, 2**11, 2, 2): False,
    (Pool("group"), 2**20, 2**12): True,
}


def test_which_calls_are_refused(fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without values, which pretend to be on a GPU."""
    monkeypatch.setattr(gpu, "failure", lambda _: None)
    x, w = _on_gpu(8, 64, 56, 56), _on_gpu(64)
    assert TritonGPU().refuses(Call(x, BATCH, w, w, x)) is None
    half = _on_gpu(8, 64, 56, 56, dtype=torch.bfloat16)
    assert TritonGPU().refuses(Call(half, Spec(PER_POSITION, 1e-5), w, None, half)) is None
    float64 = FixedStats(w.double(), w.double())
    refused = {
        "several processes": Call(x, BATCH, group=object()),
        "run on a GPU and the input is on cpu": Call(torch.ones(2, 3), BATCH),
        "no code for torch.float64": Call(x.double(), BATCH),
        "the input is empty": Call(_on_gpu(0, 64, 7), BATCH),
        "fewer than two axes": Call(_on_gpu(64), BATCH),
        "do not divide": Call(x, Spec(Pool("group", 7), 1e-5)),
        "a weight or bias": Call(x, BATCH, torch.ones(64)),
        "one number per channel": Call(x, BATCH, None, _on_gpu(63)),
        "the residual": Call(x, BATCH, None, None, half),
        "the statistics are float64": Call(x, BATCH, stats=float64),
        "the running statistics": Call(half, BATCH, stats=BatchStats((half, half, 0.1))),
        "launched sooner for so few values": Call(_on_gpu(2, 64, 7, 7), BATCH, w, w),
    }
    for clause, call in refused.items():
        reason = TritonGPU().refuses(call)
        assert reason is not None and clause in reason, clause
    for (pool, *shape), within in LARGE.items():
        reason = TritonGPU().refuses(Call(_on_gpu(*shape), Spec(pool, 1e-5)))
        assert reason == (None if within else gpu.TOO_LARGE), (pool, shape)
    # With an activation PyTorch takes two kernels, and for positions it has none.
    small = _on_gpu(2, 64, 7, 7)
    assert TritonGPU().refuses(Call(small, Spec(PER_CHANNEL, 1e-5, Act("relu")))) is None
    assert TritonGPU().refuses(Call(small, Spec(PER_POSITION, 1e-5))) is None
    monkeypatch.setattr(kernels, "_INSTALLED", False)
    assert "pip install triton" in str(TritonGPU().refuses(Call(x, BATCH)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_where_triton_fails_calls_are_refused(fake: FakeTensorMode) -> None:
    """Here there is no GPU; elsewhere there may be no compiler."""
    with patch.dict(gpu._tried, clear=True):
        reason = TritonGPU().refuses(Call(_on_gpu(8, 64, 56, 56), BATCH))
    assert reason is not None and reason.startswith("Triton does not run on cuda:0 (")


def test_want_of_memory_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda:7")
    answers: Iterator[Any] = iter([torch.cuda.OutOfMemoryError("full"), None])

    def tried(_: torch.device) -> None:
        answer = next(answers)
        if answer is not None:
            raise answer

    monkeypatch.setattr(gpu, "_failure", tried)
    with patch.dict(gpu._tried, clear=True):
        assert "without free memory" in str(gpu.failure(device))
        assert gpu.failure(device) is None
        assert gpu.failure(device) is None  # remembered


def test_a_stand_in_for_triton_is_not_triton() -> None:
    code = (
        "import sys, types; sys.modules['triton'] = types.ModuleType('triton')\n"
        "from normkit.kernels import triton; print(triton.why_not())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("Triton is not installed"), done.stderr


def test_it_explains_itself() -> None:
    line = "Triton kernels: not used because they run on a GPU and the input is on meta"
    assert line in explain(Call(torch.ones(4, 3, device="meta"), BATCH))


# In compiled graphs


def test_operations_have_implementations_for_gpus(fake: FakeTensorMode) -> None:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert all(has(f"normkit::{name}", "CUDA") for name in KERNELS)
    x, w = _on_gpu(4, 6, 5, 5, dtype=torch.half), _on_gpu(6)
    for pool in (PER_CHANNEL, Pool("group", 3), PER_POSITION):
        options = operations.options_of(Spec(pool, 1e-5, Act("silu")))
        y, stats = torch.ops.normkit.normalize_forward(x, w, None, x, *options)
        assert (y.dtype, y.shape, y.device.type) == (x.dtype, x.shape, "cuda")
        assert (stats.dtype, stats.device.type) == (torch.float32, "cuda")
        assert torch.ops.normkit.normalize_moments(x, *options[:3]).shape == stats.shape
        grads = torch.ops.normkit.normalize_backward(x, x, w, None, x, stats, False, 11, *options)
        assert [g.shape for g in grads] == [x.shape, w.shape, (0,), x.shape]


def test_which_calls_of_a_graph_are_kept(
    fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "compiling_plainly", lambda *_: True)
    x, w = _on_gpu(8, 64, 56, 56), _on_gpu(64)
    for spec in (BATCH, Spec(Pool("group", 8), 1e-5, Act("silu")), Spec(PER_POSITION, 1e-5)):
        assert Compiled().refuses(Call(x, spec, w, w)) is None
    rows = Call(_on_gpu(8, 64), Spec(Pool("group"), 1e-5))
    assert "a compiler's code for rows" in str(Compiled().refuses(rows))
    assert "device or type" in str(Compiled().refuses(Call(x.double(), BATCH)))
    large = Call(_on_gpu(2, 2**11, 2**10, 2**10), BATCH)
    assert "positions of 32 bits" in str(Compiled().refuses(large))
    fixed = Call(x, BATCH, stats=FixedStats(w, w))
    assert "a compiler fuses it" in str(Compiled().refuses(fixed))
    monkeypatch.setattr(kernels, "_INSTALLED", False)
    assert "pip install triton" in str(Compiled().refuses(Call(x, BATCH)))


@pytest.mark.skipif(cpu.fused is None or not operations.available, reason="needs the operations")
@pytest.mark.skipif(not tells_exporting, reason="an export cannot be told from compiling")
@pytest.mark.filterwarnings("ignore:.*Overriding a previously registered kernel")
@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.parametrize(
    "name",
    few(
        ["BatchNorm2d", "GroupNorm", "InstanceNorm2d", "LayerNorm2d"],
        lambda name: name in ("BatchNorm2d", "LayerNorm2d"),
    ),
)
def test_a_compiled_step(name: str, interpreted: None) -> None:
    """With the implementations for GPUs in the place of those for CPUs."""
    layer = LAYERS[name]()
    twin = copy.deepcopy(layer)
    x, residual, dy = torch.randn(3, 4, 6, 3, 5).unbind()
    expected = _step(twin, x, residual, dy)
    calls: list[str] = []

    def counted(kernel: Callable[..., Any], operation: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            calls.append(operation)
            return kernel(*args)

        return run

    library = torch.library.Library("normkit", "IMPL")
    try:
        for operation, kernel in KERNELS.items():
            library.impl(operation, counted(kernel, operation), "CPU", allow_override=True)
        torch._dynamo.reset()
        run: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
        inputs = [t.detach().requires_grad_() for t in (x, residual)]
        y = run(*inputs)
        grads = torch.autograd.grad(y, [*inputs, *layer.parameters()], dy)
    finally:
        library._destroy()
        torch._dynamo.reset()
    forward = "normalize_moments" if name == "InstanceNorm2d" else "normalize_forward"
    assert calls == [forward, "normalize_backward"]
    for a, b in zip([y.detach(), *grads, *layer.buffers()], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_an_empty_input_of_a_graph() -> None:
    """The sizes of a graph may be zero when it runs."""
    x, weight = torch.empty(0, 6, 3, 3), torch.randn(6)
    options = operations.options_of(Spec(Pool("group", 2), 1e-5, Act("silu")))
    y, stats = KERNELS["normalize_forward"](x, weight, None, None, *options)
    assert y.shape == x.shape and stats.shape == (4, 0)
    batch = KERNELS["normalize_moments"](x, *operations.options_of(BATCH)[:3])
    assert batch[2].tolist() == pytest.approx([1e-5**-0.5] * 6)
    grads = KERNELS["normalize_backward"](y, x, weight, None, None, stats, False, 3, *options)
    assert [g.shape for g in grads] == [x.shape, (6,), (0,), (0,)]
    assert not grads[1].any()
