"""What explain says is what ran: eagerly, traced, transformed, in modes and across processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functionalize, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

import normkit as nk
from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.pools import PER_CHANNEL, PER_POSITION, Pool
from normkit.errors import OptionError
from normkit.kernels import cpu, dispatch, fused
from normkit.kernels.call import BatchStats, Call, FixedStats, Normalized
from normkit.kernels.dispatch import explain, normalize, usual_way
from normkit.nn.explain import explain as explain_layer

X = (4, 6, 5, 3)


def _recording(run: Any, names: list[str]) -> Callable[[Any, Call], Normalized]:
    def recorded(self: Any, call: Call) -> Normalized:
        names.append(self.name)
        result: Normalized = run(self, call)
        return result

    return recorded


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the ways that run, in order."""
    names: list[str] = []
    for way in dispatch.WAYS:
        monkeypatch.setattr(type(way), "run", _recording(type(way).run, names))
    return names


def _used(lines: list[str]) -> str:
    name, _, verdict = lines[-1].partition(": ")
    assert verdict == "used"
    assert all(": not used because " in line for line in lines[:-1])
    return name


def _random(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(X).to(device, dtype)


CALLS: dict[str, Callable[[], Call]] = {
    "batch": lambda: Call(_random(), Spec(PER_CHANNEL, 1e-5)),
    "batch with moments": lambda: Call(_random(), Spec(PER_CHANNEL, 1e-5), wants_moments=True),
    "batch with an update": lambda: Call(
        _random(),
        Spec(PER_CHANNEL, 1e-5),
        stats=BatchStats((torch.zeros(6), torch.ones(6), 0.1)),
        wants_moments=True,
    ),
    "batch with an update of half type": lambda: Call(
        _random(),
        Spec(PER_CHANNEL, 1e-5),
        stats=BatchStats((torch.zeros(6).half(), torch.ones(6).half(), 0.1)),
    ),
    "fixed": lambda: Call(
        _random(), Spec(PER_CHANNEL, 1e-5), stats=FixedStats(torch.zeros(6), torch.ones(6))
    ),
    "ghost": lambda: Call(_random(), Spec(Pool("ghost", 2), 1e-5), torch.ones(6)),
    "group": lambda: Call(_random(), Spec(Pool("group", 3), 1e-5), torch.ones(6), torch.ones(6)),
    "instance with moments": lambda: Call(
        _random(), Spec(Pool("group", 6), 1e-5), wants_moments=True
    ),
    "position": lambda: Call(_random(), Spec(PER_POSITION, 1e-5)),
    "rms": lambda: Call(torch.randn(4, 6), Spec(Pool("group", 1), 1e-5, centred=False)),
    "rows": lambda: Call(torch.randn(4, 6), Spec(Pool("group", 1), 1e-5, Act("silu"))),
    "bfloat16": lambda: Call(_random(torch.bfloat16), Spec(PER_CHANNEL, 1e-5), torch.ones(6)),
    "float16": lambda: Call(_random(torch.float16), Spec(Pool("group", 2), 1e-5)),
    "float64 and a float32 weight": lambda: Call(
        _random(torch.float64), Spec(PER_CHANNEL, 1e-5), torch.ones(6)
    ),
    "empty": lambda: Call(torch.randn(0, 6, 5, 3), Spec(PER_CHANNEL, 1e-5)),
    "empty groups": lambda: Call(torch.randn(4, 6, 0), Spec(Pool("group", 3), 1e-5)),
    "meta": lambda: Call(_random(device="meta"), Spec(PER_CHANNEL, 1e-5)),
    "meta by position": lambda: Call(_random(device="meta"), Spec(PER_POSITION, 1e-5)),
    "strided": lambda: Call(torch.randn(8, 6, 5, 3)[::2], Spec(PER_CHANNEL, 1e-5)),
    "negated": lambda: Call(torch._neg_view(_random()), Spec(PER_CHANNEL, 1e-5)),
    "zero tensor": lambda: Call(torch._efficientzerotensor(X), Spec(PER_CHANNEL, 1e-5)),
    "residual": lambda: Call(_random(), Spec(PER_CHANNEL, 1e-5, Act("relu")), residual=_random()),
    "negated residual": lambda: Call(
        _random(), Spec(PER_CHANNEL, 1e-5), residual=torch._neg_view(_random())
    ),
    "parameter": lambda: Call(nn.Parameter(_random()), Spec(PER_CHANNEL, 1e-5)),
}


def _dual(f: Callable[[], Any]) -> Any:
    with forward_ad.dual_level():
        return f()


def _compiled(f: Callable[[], Any]) -> Any:
    return torch.compile(f, backend="eager")()


AROUND: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "eager": lambda f: f(),
    "forward-mode level": _dual,
    "compile": _compiled,
    "autocast": lambda f: _within(torch.autocast("cpu"), f),
    "no_grad": lambda f: _within(torch.no_grad(), f),
    "inference_mode": lambda f: _within(torch.inference_mode(), f),
    "dispatch mode": lambda f: _within(FlopCounterMode(display=False), f),
    "torch.func": lambda f: vmap(lambda _: (f(), torch.zeros(()))[1])(torch.zeros(1)),
}


def _within(context: AbstractContextManager[Any], f: Callable[[], Any]) -> Any:
    with context:
        return f()


@pytest.mark.parametrize(
    ("kernels", "around"), [("without", "eager"), *(("built", around) for around in AROUND)]
)
@pytest.mark.parametrize("name", CALLS)
def test_explained_way_is_the_one_that_runs(
    name: str, kernels: str, around: str, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == "without":
        monkeypatch.setattr(cpu, "fused", None)
    if around == "compile" and name in ("negated", "zero tensor", "negated residual", "meta"):
        pytest.skip("Dynamo cannot make these tensors")
    call = CALLS[name]()
    explained: list[list[str]] = []

    def both() -> None:
        explained.append(explain(call))
        normalize(call)

    AROUND[around](both)
    assert [_used(lines) for lines in explained] == runs and len(runs) == 1


@pytest.mark.parametrize("transform", ["vmap", "jvp", "grad", "functionalize", "trace"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_explained_way_runs_under_transforms(transform: str, runs: list[str]) -> None:
    explained: list[str] = []

    def f(x: Tensor) -> Tensor:
        call = Call(x, Spec(PER_CHANNEL, 1e-5))
        explained.append(_used(explain(call)))
        return normalize(call).y

    x = _random()
    if transform == "vmap":
        vmap(f)(torch.stack([x, x]))
    elif transform == "jvp":
        jvp(f, (x,), (x,))
    elif transform == "grad":
        grad(lambda x: f(x).sum())(x)
    elif transform == "functionalize":
        functionalize(f)(x)
    else:
        torch.jit.trace(f, (x,), check_trace=False)
    assert explained == runs == ["traced formula"]


def test_process_groups_are_explained(process_group: Any, runs: list[str]) -> None:
    """Every way but the portable one says why it cannot take moments of several processes."""
    call = Call(_random(), Spec(PER_CHANNEL, 1e-5), group=process_group)
    lines = explain(call)
    normalize(call)
    assert runs == [_used(lines)] == ["portable operations"]
    assert all("span several processes" in line or "not built" in line for line in lines[:-1])


@pytest.mark.skipif(cpu.fused is None, reason=cpu.reason or "built")
@pytest.mark.parametrize("mode", ["eager", "dispatch mode"])
@pytest.mark.parametrize("name", CALLS)
def test_fused_refuses_what_the_extension_refuses(
    name: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What FusedCPU refuses is what the kernels do not compute."""
    call = CALLS[name]()
    results: list[Any] = []
    assert cpu.fused is not None

    class Recording:
        refuses = staticmethod(cpu.fused.refuses)

        def normalize(self, *args: Any) -> Any:
            results.append(extension.normalize(*args))
            return results[-1]

    extension = cpu.fused
    way = fused.FusedCPU()
    refusal = way.refuses(call)
    monkeypatch.setattr(cpu, "fused", Recording())
    context = FlopCounterMode(display=False) if mode == "dispatch mode" else nullcontext()
    with context:
        refusal = way.refuses(call)
        try:
            way.run(call)
        except AssertionError:
            assert refusal is not None
    assert (results[0] is None) is (refusal is not None)


class Toy:
    """A way for inputs of a single channel, which computes zeros."""

    name = "toy"

    def refuses(self, call: Call) -> str | None:
        return None if call.x.shape[1] == 1 else "it takes one channel"

    def run(self, call: Call) -> Normalized:
        return Normalized(torch.zeros_like(call.x), None, None, call.x.numel())


def test_new_way_is_used_and_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, traced, *others = dispatch.WAYS
    monkeypatch.setattr(dispatch, "WAYS", (compiled, traced, Toy(), *others))
    one, two = torch.ones(2, 1, 4, requires_grad=True), torch.randn(2, 2, 4)
    spec = Spec(PER_CHANNEL, 1e-5, Act("gelu"))
    assert _used(explain(Call(one, spec))) == "toy"
    assert torch.equal(normalize(Call(one, spec, torch.ones(1))).y, torch.zeros_like(one))
    assert "toy: not used because it takes one channel" in explain(Call(two, spec))
    assert bool(normalize(Call(two, spec)).y.any())
    layer = nk.HalfInstanceNorm2d(2)
    assert _used(explain_layer(layer, torch.randn(2, 2, 3, 3))) == "toy"


def test_usual_way_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, rms = Spec(PER_CHANNEL, 1e-5), Spec(Pool("group", 1), 1e-5, centred=False)
    expected = "PyTorch's kernels" if cpu.fused is None else "fused C++ kernels"
    assert _used(usual_way(torch.device("cpu"), torch.float32, batch)) == expected
    on_meta = usual_way(torch.device("meta"), torch.half, batch)
    assert any("not used because they run on a CPU" in line for line in on_meta)
    monkeypatch.setattr(cpu, "fused", None)
    assert _used(usual_way(torch.device("cpu"), torch.float32, rms)) == "portable operations"


class Doubling(nk.BatchNorm2d):
    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return 2 * input


def test_layer_with_a_forward_of_its_own_is_explained() -> None:
    assert explain_layer(Doubling(6), _random()) == ["Doubling.forward: used"]


def test_strides_of_buffers_are_explained(runs: list[str]) -> None:
    layer = nk.BatchNorm2d(6)
    layer.running_mean = torch.zeros(12)[::2]
    x = _random()
    explained = _used(explain_layer(layer, x))
    layer(x)
    assert explained == (runs[0] if runs else "one fused call for the whole layer")


def test_lazy_layer_is_explained_after_its_first_input() -> None:
    layer = nk.LazyBatchNorm2d()
    with pytest.raises(OptionError, match="an initialized layer"):
        explain_layer(layer, _random())
    layer(_random())
    assert explain_layer(layer, _random())[-1].endswith(": used")


LAYERS: dict[str, Callable[[], nk.nn.Layer]] = {
    "BatchNorm2d": lambda: nk.BatchNorm2d(6),
    "cumulative": lambda: nk.BatchNorm2d(6, average="cumulative"),
    "evaluation": lambda: nk.BatchNorm2d(6).eval(),
    "ghost": lambda: nk.GhostBatchNorm2d(6, ghost_size=3),
    "sync": lambda: nk.SyncBatchNorm(6),
    "renorm": lambda: nk.BatchRenorm2d(6),
    "domain": lambda: nk.DomainBatchNorm2d(6, 1),
    "frozen": lambda: nk.FrozenBatchNorm2d(6),
    "group": lambda: nk.GroupNorm(2, 6),
    "instance": lambda: nk.InstanceNorm2d(6, track_running_stats=True),
    "layer": lambda: nk.LayerNorm((5, 3)),
    "layer 2d": lambda: nk.LayerNorm2d(6),
    "rms": lambda: nk.RMSNorm(3),
    "half instance": lambda: nk.HalfInstanceNorm2d(6),
}
INPUTS: dict[str, Callable[[], Tensor]] = {
    "usual": _random,
    "half": lambda: _random(torch.bfloat16),
    "empty": lambda: torch.randn(0, 6, 5, 3),
    "strided": lambda: torch.randn(8, 6, 5, 3)[::2],
    "meta": lambda: _random(device="meta"),
}


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_explained_without_side_effects(
    name: str, given: str, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = LAYERS[name](), INPUTS[given]()
    if given == "meta":
        layer = layer.to("meta")
    else:
        layer(torch.randn(X))  # its own state, so that a change would show
    runs.clear()
    short: list[bool] = []
    fast = fused.layer

    def recording(*args: Any) -> Tensor | None:
        y = fast(*args)
        if y is not None:
            short.append(True)
        return y

    before = [(b.clone(), b._version) for b in layer.buffers()]
    state = dict(vars(layer))
    lines = explain_layer(layer, x)
    assert not runs and vars(layer) == state
    for b, (value, version) in zip(layer.buffers(), before, strict=True):
        assert b._version == version and (b.is_meta or torch.equal(b, value))
    monkeypatch.setattr(fused, "layer", recording)
    layer(x)
    used = {line.removesuffix(": used") for line in lines if line.endswith(": used")}
    assert used == ({"one fused call for the whole layer"} if short else set(runs))
