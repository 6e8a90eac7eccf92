"""The kernels in compiled graphs: which calls they take, and that nothing else changes.

By ``aot_eager``, which records forward and backward as Inductor gets them but compiles no code.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.utils import run_and_get_code
from torch.autograd import forward_ad

import normkit as nk
from normkit.compat import tells_exporting
from normkit.core import formula
from normkit.core.formula import Spec
from normkit.core.pools import PER_CHANNEL, PER_POSITION, Pool
from normkit.kernels import cpu, dispatch, operations
from normkit.kernels.call import BatchStats, Call
from tests.few import few
from tests.nn.every_layer import EVERY
from tests.tolerances import error

if cpu.fused is None:
    pytest.skip(cpu.reason, allow_module_level=True)
if not tells_exporting:
    pytest.skip("an export cannot be told from compiling", allow_module_level=True)

OPS = torch.ops.normkit
LAST = torch.channels_last
LAYERS: dict[str, Callable[..., Any]] = {
    "BatchNorm2d": lambda **o: nk.BatchNorm2d(4, **o),
    "GroupNorm": lambda **o: nk.GroupNorm(2, 4, **o),
    "InstanceNorm2d": lambda **o: nk.InstanceNorm2d(4, affine=True, track_running_stats=True, **o),
    "LayerNorm": lambda **o: nk.LayerNorm(6, **o),
    "LayerNorm2d": lambda **o: nk.LayerNorm2d(4, **o),
    "RMSNorm": lambda **o: nk.RMSNorm(6, **o),
    "GhostBatchNorm2d": lambda **o: nk.GhostBatchNorm2d(4, 3, **o),
    "FilterResponseNorm2d": lambda **o: nk.FilterResponseNorm2d(4, tlu=False, **o),
}

QUICK = ("BatchNorm2d", "GroupNorm", "LayerNorm2d")
IMAGES = [
    name for name, each in EVERY.items() if len(each.shape) > 3 and not name.startswith("Lazy")
]

POOLS = [PER_CHANNEL, Pool("ghost", 3), Pool("group", 2), Pool("group", 4), PER_POSITION]


def test_the_extension_brings_the_operations() -> None:
    """Without them compiled graphs hold the formula, and nobody would notice."""
    assert operations.available, "built from other sources than these: build it again"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """Backend that runs a graph as it is and counts our operations in it."""

    def __init__(self) -> None:
        self.graphs: list[int] = []
        self.calls: set[str] = set()

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        calls = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
        self.calls |= {getattr(n.target, "__name__", str(n.target)) for n in graph.graph.nodes}
        self.graphs.append(sum(call.startswith("normkit") for call in calls))
        return graph.forward


def step(run: Any, module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Output, gradients of inputs and parameters, and buffers after one step."""
    inputs = tuple(t.detach().requires_grad_() for t in inputs)
    y = run(*inputs)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape))
    gradients = [t.grad for t in (*inputs, *module.parameters())]
    assert all(g is not None for g in gradients)
    return [y.detach(), *gradients, *(b.clone() for b in module.buffers())]


@pytest.mark.parametrize(
    ("name", "act"),
    few(
        zip(LAYERS, itertools.cycle(("relu", "silu", None, "relu6")), strict=False),
        lambda name, _: name in QUICK,
    ),
)
def test_steps_are_those_of_the_eager_layer(name: str, act: str | None) -> None:
    layer = LAYERS[name](act=act)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    # As it is, then with a residual and in the other memory format: two graphs.
    for inputs in ((torch.randn(6, 4, 5, 6),), torch.randn(2, 6, 4, 5, 6).unbind()):
        inputs = tuple(t.contiguous(memory_format=LAST) for t in inputs) if inputs[1:] else inputs
        found, expected = step(compiled, layer, *inputs), step(twin, twin, *inputs)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        # Outputs and their gradients keep the memory format.
        assert [t.stride() for t in found] == [t.stride() for t in expected]


def test_which_calls_keep_the_kernels() -> None:
    x = torch.randn(6, 4, 5, 6)
    for layer, count in (
        (nk.BatchNorm2d(4), 1), (nk.BatchNorm2d(4).eval(), 0), (nk.GroupNorm(2, 4).eval(), 1),
        (nk.LayerNorm(6).eval(), 1), (nk.RMSNorm(6), 1), (nk.LayerNorm(6).requires_grad_(False), 0),
        (nk.FrozenBatchNorm2d(4), 0), (nk.BatchNorm2d(4).half(), 1),
    ):  # fmt: skip
        backend = Counting()
        torch.compile(layer, fullgraph=True, backend=backend)(x.to(layer.weight.dtype))
        assert backend.graphs == [count], layer


def test_accelerated_pairs_are_one_operation() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.SiLU())
    model.append(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True)))
    twin, x, backend = copy.deepcopy(model), torch.randn(6, 4, 5, 6), Counting()
    nk.accelerate(model)
    torch.compile(model, fullgraph=True, backend=backend)(x)
    assert backend.graphs == [3]
    assert backend.calls.isdisjoint({"relu", "silu", "relu_"})
    twin(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for a, b in zip(step(compiled, model, x), step(twin, twin, x), strict=True):
        torch.testing.assert_close(a, b)
    seen: list[Tensor] = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.compile(model, backend="eager")(x)
    assert len(seen) == 1


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_any_pool_with_and_without_centring(pool: Pool, centred: bool) -> None:
    x, w, b = torch.randn(6, 4, 5) * 2 + 1, torch.randn(4), torch.randn(4)
    spec = Spec(pool, 1e-5, None, centred)

    def run(x: Tensor) -> Tensor:
        return dispatch.normalize(Call(x, spec, w, b, None, BatchStats())).y

    counting = Counting()
    got = torch.compile(run, fullgraph=True, backend=counting)(x)
    assert counting.graphs == [1]
    expected = formula.normalize(x, spec, w, b, None, *formula.stats_of(x, pool, centred))
    torch.testing.assert_close(got, expected)


def test_sizes_that_vary_need_one_more_graph() -> None:
    model = nn.Sequential(nk.BatchNorm2d(4, act="relu"), nk.GroupNorm(2, 4), nk.LayerNorm(6))
    twin, backend = copy.deepcopy(model), Counting()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for n in (4, 6, 9, 5):
        x = torch.randn(n, 4, n + 1, 6)
        torch.testing.assert_close(compiled(x), twin(x))
    assert backend.graphs == [3, 3]
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


def test_sizes_marked_as_dynamic() -> None:
    layer = nk.BatchNorm2d(4, act="relu")
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (5, 7):
        x = torch.randn(n, 4, n, 6)
        for a, b in zip(step(compiled, layer, x), step(twin, twin, x), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm"])
def test_far_from_zero_as_exact_as_eager(name: str) -> None:
    layer = LAYERS[name]()
    twin, truth = copy.deepcopy(layer), copy.deepcopy(layer).double()
    x = torch.randn(6, 4, 5, 6) * 0.1 + 1e3
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = (step(compiled, layer, x), step(twin, twin, x), step(truth, truth, x.double()))
    for ours, eager, exact in zip(*results, strict=True):
        assert error(ours, exact) <= error(eager, exact) * 1.01 + 1e-6


def test_under_autocast() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nk.BatchNorm2d(4, act="relu"), nk.GroupNorm(2, 4))
    twin, x = copy.deepcopy(model), torch.randn(6, 3, 5, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = step(compiled, model, x), step(twin, twin, x)
    assert found[0].dtype == expected[0].dtype == torch.bfloat16
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_what_follows_may_write_to_the_output() -> None:
    for layer in (nk.BatchNorm2d(4), nk.GroupNorm(2, 4, affine=False), nk.LayerNorm(6)):
        model = nn.Sequential(layer, nn.ReLU(inplace=True))
        twin, x = copy.deepcopy(model), torch.randn(6, 4, 5, 6)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for a, b in zip(step(compiled, model, x), step(twin, twin, x), strict=True):
            torch.testing.assert_close(a, b)


def test_no_samples() -> None:
    for make in (LAYERS["BatchNorm2d"], LAYERS["GroupNorm"], LAYERS["LayerNorm"]):
        layer = make()
        twin, x = copy.deepcopy(layer), torch.randn(0, 4, 5, 6)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for a, b in zip(step(compiled, layer, x), step(twin, twin, x), strict=True):
            torch.testing.assert_close(a, b)


def test_a_graph_run_eagerly_has_derivatives_of_any_order() -> None:
    layer, x = nk.BatchNorm2d(4, act="silu"), torch.randn(6, 4, 5, 6, requires_grad=True)

    def second(run: Any) -> Tensor:
        (g,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.square().sum(), x)
        return h

    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert compiled(x).grad_fn.name() == "NormalizeBackward"  # the kernels' own node
    torch.testing.assert_close(second(compiled), second(layer))


def test_transforms_inside_a_compiled_function_see_through() -> None:
    layer, x = nk.GroupNorm(2, 4), torch.randn(6, 4, 5, 6)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "vmap": torch.func.vmap(lambda t: layer(t[None])[0]),
        "jvp": lambda t: torch.func.jvp(layer, (t,), (torch.ones_like(t),))[1],
    }
    for name, function in functions.items():
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), function(x), msg=name)


# From 2.14 Dynamo breaks the graph there, and says that it cannot trace the extension.
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin")
def test_forward_mode_outside() -> None:
    layer, x = nk.GroupNorm(2, 4), torch.randn(6, 4, 5, 6)

    def tangent(run: Any) -> Tensor:
        with forward_ad.dual_level():
            y = run(forward_ad.make_dual(x, torch.ones_like(x)))
            return forward_ad.unpack_dual(y).tangent

    compiled = torch.compile(layer, backend="eager")
    torch.testing.assert_close(tangent(compiled), tangent(layer))


def test_exported_graphs_hold_operations_of_torch() -> None:
    layer = nk.BatchNorm2d(4, act="relu")
    for strict in (True, False):
        exported = torch.export.export(layer, (torch.randn(6, 4, 5, 6),), strict=strict)
        assert not any("normkit" in str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_operations_are_what_they_are_registered_as(layout: torch.memory_format) -> None:
    x, r, dy = torch.randn(3, 6, 4, 5, 6).unbind()
    x, r, dy = (t.contiguous(memory_format=layout) for t in (x, r, dy))
    weight, bias = torch.rand(2, 4).unbind()
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    for groups, act, slope in ((1, 0, 0.0), (2, 1, 0.0)):
        options = (2, groups, 1e-5, act, slope, True)
        torch.library.opcheck(
            OPS.normalize_forward.default, (x, weight, bias, r, *options), test_utils=checks
        )
        y, stats = OPS.normalize_forward(x, weight, bias, r, *options)
        other = y if act == 0 else r
        for needs in (0b1111, 0b0010):
            inputs = (dy, x, weight, bias, other, stats, act == 0, needs, *options)
            torch.library.opcheck(OPS.normalize_backward.default, inputs, test_utils=checks)


def test_wrong_arguments_of_an_operation_are_named() -> None:
    with pytest.raises(RuntimeError, match="one number per channel"):
        OPS.normalize_forward(torch.ones(2, 3), torch.ones(4), None, None, 0, 1, 1e-5, 0, 1.0, True)


@pytest.mark.parametrize(
    "name", few(IMAGES, lambda name: name in ("BatchNorm2d", "SwitchableNorm2d"))
)
def test_images_keep_their_axes(name: str) -> None:
    """Inductor lays images out with channels last, and transposes them for a flattened axis."""
    training, x = EVERY[name].make(), torch.randn(EVERY[name].shape)
    last = EVERY[name].shape[-1:]

    def look(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        values = [node.meta.get("val") for node in graph.graph.nodes]
        like_x = [v for v in values if isinstance(v, Tensor) and v.numel() == x.numel()]
        images.extend(v.shape for v in like_x if v.dim() > 2 and v.shape[-1:] != last)
        return make_boxed_func(graph.forward)

    for layer in (training, copy.deepcopy(training).eval()):
        images: list[torch.Size] = []
        with torch.set_grad_enabled(layer.training):
            torch.compile(layer, fullgraph=True, backend=aot_autograd(fw_compiler=look))(x)
        assert images == []


@pytest.mark.slow  # compiles code, twenty seconds
def test_convolutions_take_frozen_layers_in() -> None:
    """With ``freezing`` Inductor multiplies weights by γ/σ: nothing is left but convolutions."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16),
    )  # fmt: skip
    x = torch.randn(4, 3, 12, 12)
    model(x)
    ours = copy.deepcopy(model)
    assert nk.accelerate(ours).changed
    frozen = nn.Sequential(*copy.deepcopy(model))
    frozen[1] = nk.FrozenBatchNorm2d.from_batch_norm(frozen[1])
    lengths, outputs = [], []
    for each in (model.eval(), ours.eval(), frozen.eval()):
        torch._dynamo.reset()
        compiled = torch.compile(each, fullgraph=True)
        # As an option of torch.compile it comes too late for the parameters.
        with torch.no_grad(), torch._inductor.config.patch(freezing=True):
            y, code = run_and_get_code(compiled, x)
            outputs.append(y - each(x))
        text = "\n".join(code)
        lengths.append(
            [text.count(kind) for kind in ("cpp_pybinding(", "= torch.ops.mkldnn._conv")]
        )
        assert "sqrt" not in text and "rsqrt" not in text
    assert lengths[0] == lengths[1] == lengths[2]
    assert lengths[0][1] == 3
    assert all(off.abs().max() < 1e-5 for off in outputs)


@pytest.mark.slow  # compiles code, ten seconds
def test_by_inductor() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nk.BatchNorm2d(8, act="relu"), nn.Conv2d(8, 8, 1), nk.GroupNorm(2, 8)
    )
    twin, x = copy.deepcopy(model), torch.randn(4, 3, 9, 9)
    compiled = torch.compile(model, fullgraph=True)
    for _ in range(2):
        for a, b in zip(step(compiled, model, x), step(twin, twin, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            assert a.is_contiguous() == b.is_contiguous()
