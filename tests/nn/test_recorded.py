"""Traced, exported and overridden layers: the operations of torch.nn's layers, where it has them.

So what other tools do with such a graph or tensor (switch it to evaluation, differentiate it per
sample, write it as ONNX) comes out as for ``torch.nn``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

import normkit as nk

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


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
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


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", [name for name, (_, twin) in LAYERS.items() if twin])
def test_exported_operations_are_those_of_torch(name: str, training: bool) -> None:
    ours, theirs = LAYERS[name]
    assert theirs is not None
    layer, twin = ours().train(training), theirs().train(training)
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
            torch.export.export(layer, (x,))
        return
    graph = switched_to_evaluation(torch.export.export(layer, (x,)).module())
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
