"""Tools that fold a normalization into the layer before: right, or refused, on changed models.

They look for exact classes, so a changed layer is passed over, with its activation and its state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao.quantization import fuse_modules, get_default_qconfig_mapping, quantize_fx
from torch.fx.experimental.optimization import fuse, optimize_for_inference

import normkit as nk

X = torch.randn(4, 3, 8, 8)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def network(make: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), make(4), nn.ReLU(), nn.Conv2d(4, 4, 3), make(4), nn.Tanh()
    )
    for _ in range(3):
        model(X)
    return model.eval()


def frozen() -> nn.Sequential:
    model = network()
    nk.freeze(model)
    return model


def accelerated(model: nn.Sequential) -> nn.Sequential:
    nk.accelerate(model)
    return model


MODELS: dict[str, Callable[[], nn.Sequential]] = {
    "torch.nn": network,
    "accelerated": lambda: accelerated(network()),
    "frozen": frozen,
    "accelerated and frozen": lambda: accelerated(frozen()),
    "with activations": lambda: network(lambda c: nk.BatchNorm2d(c, act="gelu")),
    "ghosts": lambda: network(lambda c: nk.GhostBatchNorm2d(c, 2)),
}
TOOLS: dict[str, Callable[[nn.Module], Any]] = {
    "fx.fuse": fuse,
    "optimize_for_inference": optimize_for_inference,
    "fuse_fx": quantize_fx.fuse_fx,
    "prepare_fx": lambda m: quantize_fx.prepare_fx(m, get_default_qconfig_mapping(), (X,)),
    "jit.freeze": lambda m: torch.jit.freeze(torch.jit.trace(m, (X,))),
    "jit.optimize_for_inference": lambda m: torch.jit.optimize_for_inference(
        torch.jit.trace(m, (X,))
    ),
    "export": lambda m: torch.export.export(m, (X,)).module(),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tool", TOOLS)
def test_output_stays(tool: str, name: str) -> None:
    model = MODELS[name]()
    expected = model(X)
    torch.testing.assert_close(TOOLS[tool](model)(X), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize("name", MODELS)
def test_fuse_modules_takes_or_refuses(name: str) -> None:
    model = MODELS[name]()
    expected, pairs = model(X), [["0", "1"], ["3", "4"]]
    if name == "torch.nn":
        torch.testing.assert_close(fuse_modules(model, pairs)(X), expected, rtol=1e-4, atol=1e-5)
        return
    with pytest.raises(AssertionError, match="did not find fuser method"):
        fuse_modules(model, pairs)
    torch.testing.assert_close(model(X), expected)


def test_undone_model_can_be_fused() -> None:
    model = network()
    expected = model(X)
    nk.accelerate(model).undo()
    fused = fuse_modules(model, [["0", "1"], ["3", "4"]])
    torch.testing.assert_close(fused(X), expected, rtol=1e-4, atol=1e-5)


def test_exported_training_graph_has_the_operations_of_torch() -> None:
    def operations(model: nn.Module) -> list[str]:
        graph = torch.export.export(model.train(), (X,)).graph
        return sorted(str(node.target) for node in graph.nodes if node.op == "call_function")

    assert operations(MODELS["accelerated"]()) == operations(network())
    assert operations(MODELS["accelerated and frozen"]()) == operations(frozen())
