"""Traced, exported and overridden layers: the operations of torch.nn's layers, where it has them.

So what other tools do with such a graph or tensor (switch it to evaluation, differentiate it per
sample, write it as ONNX) comes out as for ``torch.nn``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.overrides import TorchFunctionMode

import normkit as nk
from normkit.compat import release
from tests.few import few
from tests.nn.every_layer import EVERY

# A layer and what torch.nn has for it, if anything.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module] | None]] = {
    "BatchNorm2d": (lambda: nk.BatchNorm2d(4), lambda: nn.BatchNorm2d(4)),
    "with act": (
        lambda: nk.BatchNorm2d(4, act="relu"),
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()),
    ),
    "cumulative": (lambda: nk.BatchNorm2d(4, average="cumulative"), None),
    "debiased": (lambda: nk.BatchNorm2d(4, average="debiased"), None),
    "momentum=None": (lambda: nk.BatchNorm2d(4, momentum=None), None),
    "without statistics": (
        lambda: nk.BatchNorm2d(4, track_running_stats=False),
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
    ),
    "without affine": (
        lambda: nk.BatchNorm2d(4, affine=False),
        lambda: nn.BatchNorm2d(4, affine=False),
    ),
    "half": (lambda: nk.BatchNorm2d(4).half(), lambda: nn.BatchNorm2d(4).half()),
    "SyncBatchNorm": (lambda: nk.SyncBatchNorm(4), lambda: nn.BatchNorm2d(4)),
    "GhostBatchNorm2d": (lambda: nk.GhostBatchNorm2d(4, 2), None),
    "BatchRenorm2d": (lambda: nk.BatchRenorm2d(4), None),
    "DomainBatchNorm2d": (lambda: nk.nn.DomainBatchNorm2d(4, 1), None),
    "FrozenBatchNorm2d": (lambda: nk.FrozenBatchNorm2d(4), None),
    "InstanceNorm2d": (
        lambda: nk.InstanceNorm2d(4, affine=True, track_running_stats=True),
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    ),
    "GroupNorm": (lambda: nk.GroupNorm(2, 4), lambda: nn.GroupNorm(2, 4)),
    "LayerNorm": (lambda: nk.LayerNorm((3, 3)), lambda: nn.LayerNorm((3, 3))),
    "RMSNorm": (lambda: nk.RMSNorm(3), lambda: nn.RMSNorm(3)),
    "LayerNorm2d": (lambda: nk.LayerNorm2d(4), None),
    "HalfInstanceNorm2d": (lambda: nk.HalfInstanceNorm2d(4), None),
    "Scale": (lambda: nk.Scale(4), None),
}
# Training steps that are no operation of PyTorch.
OWN_STEP = ("GhostBatchNorm2d", "BatchRenorm2d")


def images(layer: nn.Module, n: int = 4) -> Tensor:
    tensors = [*layer.parameters(), *layer.buffers()]
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    return (torch.randn(n, 4, 3, 3) * 2 + 1).to(dtype)


def trained(make: Callable[[], nn.Module], mode: bool) -> nn.Module:
    layer = make()
    for _ in range(3):
        layer(images(layer))
    return layer.train(mode)


def close(found: Any, expected: Any, name: str) -> None:
    """Compare; PyTorch's kernels round half types at other steps than ours."""
    rounding = {"rtol": 4e-3, "atol": 4e-3} if name == "half" else {}
    torch.testing.assert_close(found, expected, **rounding)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", LAYERS)
def test_trace(name: str, training: bool) -> None:
    layer = trained(LAYERS[name][0], training)
    x = images(layer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = torch.jit.trace(layer, (x,))
    ours = [w for w in caught if "normkit" in w.filename]
    if training and name == "GhostBatchNorm2d":  # its parts are those of this batch
        assert any("for batches of 4" in str(w.message) for w in ours)
        n = 4
    else:
        assert not ours
        n = 6
    twin = copy.deepcopy(layer)
    other = images(layer, n)
    close(traced(other), twin(other), name)
    close(state(layer), state(twin), name)


def operations(layer: nn.Module, x: Tensor, strict: bool = False) -> list[str]:
    program = torch.export.export(layer, (x,), strict=strict)
    return sorted(str(n.target) for n in program.graph.nodes if n.op == "call_function")


@pytest.mark.parametrize(
    ("name", "training"),
    [
        (name, training)
        for name, (_, twin) in LAYERS.items() if twin
        # The others compute the same in both modes, and an export takes a good part of a second.
        for training in ((False, True) if "running_mean" in twin().state_dict() else (True,))
    ],
)  # fmt: skip
def test_exported_operations_are_those_of_torch(name: str, training: bool) -> None:
    ours, theirs = LAYERS[name]
    assert theirs is not None
    layer, twin = ours().train(training), theirs().train(training)
    if release(torch.__version__) < (2, 8) and training and None in layer._buffers.values():
        pytest.xfail("torch 2.7 looks for an input of the graph behind every buffer, None too")
    x = images(layer)
    found, expected = operations(layer, x), operations(twin, x)
    if name == "half" and training:  # what torch.nn rounds to half is rounded once
        assert "aten.batch_norm.default" in found
    else:
        assert found == expected


def test_strictly_exported_operations() -> None:
    x = torch.randn(4, 4, 3, 3)
    assert operations(nk.BatchNorm2d(4), x, strict=True) == operations(nn.BatchNorm2d(4), x)


def switched_to_evaluation(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """What torchao's move_exported_model_to_eval does to batch normalizations."""
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.batch_norm.default and node.args[3] is not None:
            args = list(node.args)
            args[5] = False
            node.args = tuple(args)
    graph.recompile()
    return graph


@pytest.mark.parametrize(
    "name", [n for n in LAYERS if "Batch" in n or n in ("with act", "cumulative", "debiased",
                                                        "momentum=None", "without affine", "half")]
)  # fmt: skip
def test_training_graph_switched_to_evaluation(name: str) -> None:
    layer = trained(LAYERS[name][0], True)
    x, other = images(layer), images(layer, 1).repeat(4, 1, 1, 1)
    if name in OWN_STEP:
        with pytest.warns(UserWarning, match="do not switch it"):
            torch.export.export(layer, (x,), strict=False)
        return
    # Averages by the number of batches are left counting, which is said.
    said = name in ("cumulative", "debiased", "momentum=None")
    with pytest.warns(UserWarning, match="leave the graph counting") if said else nullcontext():
        graph = switched_to_evaluation(torch.export.export(layer, (x,), strict=False).module())
    layer.eval()
    before = state(graph)
    close(graph(other), layer(other), name)
    close(graph(other), layer(other), name)
    after = state(graph)
    for key in before:
        if "running" in key:
            close(after[key], before[key], name)


@pytest.mark.parametrize("act", [None, "relu", "gelu"])
@pytest.mark.parametrize(
    ("name", "args", "options", "shape"),
    [
        ("LayerNorm", (6,), {}, (3, 5, 6)),
        ("GroupNorm", (2, 6), {}, (3, 6, 4)),
        ("GroupNorm", (6, 6), {}, (3, 6, 4)),
        ("InstanceNorm1d", (6,), {"affine": True}, (3, 6, 4)),
        ("InstanceNorm2d", (6,), {"affine": True}, (3, 6, 4, 2)),
    ],
)
def test_gradients_per_sample(
    name: str, args: tuple[int, ...], options: dict[str, Any], shape: tuple[int, ...], act: Any
) -> None:
    ours, theirs = getattr(nk, name)(*args, **options, act=act), getattr(nn, name)(*args, **options)
    follow = {None: nn.Identity(), "relu": nn.ReLU(), "gelu": nn.GELU()}[act]
    x, slope = torch.randn(2, *shape).unbind()
    (call_for_per_sample_grads(ours)(x) * slope).sum().backward()
    (follow(call_for_per_sample_grads(theirs)(x)) * slope).sum().backward()
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad_sample,
            theirs.get_parameter(key).grad_sample,  # type: ignore[attr-defined]
        )


def test_batches_have_no_gradients_per_sample() -> None:
    """Refused, as with torch.nn: each sample's output depends on the others."""
    for layer in (nn.BatchNorm2d(4), nk.BatchNorm2d(4)):
        with pytest.raises(RuntimeError, match="cannot handle function batch_norm"):
            call_for_per_sample_grads(layer)(torch.randn(3, 4, 2, 2))


class Plain(Tensor):
    """A tensor subclass that overrides nothing."""


class Watching(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def in_a_mode(layer: nn.Module, x: Tensor) -> Tensor:
    with Watching():
        return layer(x)


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "trace": lambda layer, x: torch.jit.trace(layer, (x,))(x),
    "subclass": lambda layer, x: layer(x.as_subclass(Plain)).as_subclass(Tensor),
    "function mode": in_a_mode,
    "export": lambda layer, x: torch.export.export(layer, (x,)).module()(x),
}
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
# Types of layer and input, which eager layers take in any combination.
TYPES = [(F32, F64), (F64, F32), (F32, BF16), (BF16, F32), (F64, F64)]
TRACKING = {"affine": True, "track_running_stats": True}
MADE = [
    *((name, {}) for name in EVERY if not name.startswith("Lazy")),
    *((name, TRACKING) for name in EVERY if name.startswith("InstanceNorm")),
]


def check_recorded(way: str, layer: nn.Module, x: Tensor, half: bool) -> None:
    """Compare a recorded layer with the eager one: its output, and its state after one batch."""
    twin, recorded = copy.deepcopy(layer), copy.deepcopy(layer)
    rounding = {"rtol": 2e-2, "atol": 2e-2} if half else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is recorded in training mode")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module="torch")
        found, expected = WAYS[way](recorded, x), twin(x)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, **rounding)
    if way in ("subclass", "function mode"):
        torch.testing.assert_close(recorded.state_dict(), twin.state_dict(), **rounding)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "export"])
@pytest.mark.parametrize(
    ("name", "options"),
    few(MADE, lambda name, _: name[-2:] not in ("1d", "3d")),
    ids=lambda value: value if isinstance(value, str) else "tracking" * bool(value),
)
def test_any_types_recorded(name: str, options: dict[str, Any], way: str) -> None:
    # A trace takes long; each layer has two of the combinations, which go round.
    sample = EVERY[name]
    first = list(EVERY.values()).index(sample)
    some = [TYPES[(2 * first + i) % len(TYPES)] for i in range(2)] if way == "trace" else TYPES
    for of_layer, of_input in some:
        layer = sample.make(**options).to(of_layer)
        x = (torch.randn(sample.shape) * 2 + 1).to(of_input)
        layer(x)
        for training in (True, False):
            check_recorded(way, layer.train(training), x, BF16 in (of_layer, of_input))


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "InstanceNorm2d", "BatchNorm2d"])
def test_types_exported(name: str) -> None:
    layer = EVERY[name].make().eval()
    check_recorded("export", layer, torch.randn(EVERY[name].shape, dtype=F64), False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("act", [None, "relu"])
@pytest.mark.parametrize("options", [{}, {"affine": True}, {"track_running_stats": True}], ids=str)
@pytest.mark.parametrize("name", ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"])
def test_no_batch_axis_recorded(name: str, options: dict[str, Any], act: Any, way: str) -> None:
    if way == "export" and (act or name != "InstanceNorm2d" or "affine" not in options):
        return  # seconds each, by the same code
    layer = EVERY[name].make(**options, act=act)
    layer(torch.randn(EVERY[name].shape) * 2 + 1)
    for training in (True, False):
        layer.train(training)
        check_recorded(way, layer, torch.randn(EVERY[name].shape[1:]) * 3 + 1, False)


@pytest.mark.parametrize("layer", [nk.InstanceNorm1d(4, track_running_stats=True)])
def test_no_batch_axis_transformed(layer: nn.Module) -> None:
    x, slope = torch.randn(2, 4, 5).unbind()
    twin = copy.deepcopy(layer)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad((twin(leaf) * slope).sum(), leaf)
    found = torch.func.grad(lambda t: (layer(t) * slope).sum())(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())
    with forward_ad.dual_level():
        layer(forward_ad.make_dual(x, slope))
    twin(x)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


@pytest.mark.parametrize("name", ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"])
def test_no_samples_in_a_function_mode(name: str) -> None:
    layer = EVERY[name].make(affine=True, track_running_stats=True)
    before = state(layer)
    for training in (True, False):
        assert in_a_mode(layer.train(training), torch.zeros(0, *EVERY[name].shape[1:])).numel() == 0
    torch.testing.assert_close(state(layer), before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*recorded in training mode:UserWarning")
@pytest.mark.parametrize(
    "name",
    [n for n, sample in EVERY.items() if issubclass(sample.cls, nn.modules.batchnorm._NormBase)],
)
def test_traced_statistics_in_float64(name: str) -> None:
    """Sizes are tensors of integers in a trace; their quotients are float32 unless asked.

    The optimizer of TorchScript changes the graph after its first runs.
    """
    if name.startswith("Lazy"):
        return
    sample = EVERY[name]
    for average in ("exponential", "cumulative"):
        options = {"average": average} if hasattr(sample.cls, "average") else {}
        layer = sample.make(**options, track_running_stats=True).double()
        x = torch.randn(sample.shape, dtype=F64) + 3
        twin = copy.deepcopy(layer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module="torch")
            traced = torch.jit.trace(layer, (x,), check_trace=False)
        twin.load_state_dict(layer.state_dict())
        for other in (x * 2 + 1, x - 1, x * 3, x / 2):
            traced(other)
            twin(other)
            torch.testing.assert_close(state(traced), state(twin), rtol=1e-13, atol=1e-13)
