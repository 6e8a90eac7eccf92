"""Tools that fold a normalization into the layer before: right, or refused, on changed models.

They see our layers as torch.nn's, where these compute the same.
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


def of_types(model: nn.Module, *types: type) -> list[str]:
    return [type(m).__name__ for m in model.modules() if isinstance(m, types)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tool", ["fx.fuse", "optimize_for_inference", "fuse_fx"])
def test_graphs_are_folded_as_with_torch(tool: str, name: str) -> None:
    folded = TOOLS[tool](MODELS[name]())
    norms = of_types(folded, nn.modules.batchnorm._BatchNorm)
    # A frozen layer of torch.nn is recorded as the class it has, before anybody can be asked.
    passed_over = {"ghosts": ["GhostBatchNorm2d"] * 2, "frozen": ["BatchNorm2d"] * 2}
    assert norms == passed_over.get(name, [])


def test_only_what_is_folded_is_replaced() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nk.GroupNorm(2, 4), nk.BatchNorm2d(4), nn.Conv2d(4, 4, 3),
        nk.BatchNorm2d(4), nk.BatchNorm2d(4, act="silu"),
    ).eval()  # fmt: skip
    folded = fuse(model)
    ours = [m for m in folded.modules() if type(m).__module__.startswith("normkit.")]
    assert [type(m) for m in ours] == [nk.GroupNorm, nk.BatchNorm2d, nk.BatchNorm2d]
    torch.testing.assert_close(folded(X), model(X), rtol=1e-4, atol=1e-5)


def test_residual_and_activation_in_a_folded_graph() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nk.BatchNorm2d(3, act="gelu")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x), x)

    model = Block()
    model(X)
    folded = fuse(model.eval())
    assert of_types(folded, nn.BatchNorm2d) == []
    torch.testing.assert_close(folded(X), model(X), rtol=1e-4, atol=1e-5)


def test_other_graphs_keep_the_layers() -> None:
    model = accelerated(network())
    traced = torch.fx.symbolic_trace(model)
    assert [type(traced.get_submodule(name)) for name in "14"] == [nk.BatchNorm2d] * 2
    assert traced.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", MODELS)
def test_fuse_modules_takes_or_refuses(name: str) -> None:
    model = MODELS[name]()
    expected, pairs = model(X), [["0", "1"], ["3", "4"]]
    if name in ("with activations", "ghosts"):
        refusal = {"ghosts": "did not find fuser method"}.get(name, "would drop the activation")
        with pytest.raises((AssertionError, nk.TypeMismatchError), match=refusal):
            fuse_modules(model, pairs)
        torch.testing.assert_close(model(X), expected)
        return
    fused = fuse_modules(model, pairs)
    assert type(fused[1]) is type(fused[4]) is nn.Identity
    torch.testing.assert_close(fused(X), expected, rtol=1e-4, atol=1e-5)
    fused = fuse_modules(model, [["0", "1", "2"], ["3", "4"]])
    assert type(fused[0]) is torch.ao.nn.intrinsic.ConvReLU2d
    torch.testing.assert_close(fused(X), expected, rtol=1e-4, atol=1e-5)


def test_relu_of_a_layer_is_fused_with_it() -> None:
    model = network(lambda c: nk.BatchNorm2d(c, act="relu"))
    fused = fuse_modules(model, [["0", "1"], ["3", "4"]])
    assert type(fused[0]) is torch.ao.nn.intrinsic.ConvReLU2d
    torch.testing.assert_close(fused(X), model(X), rtol=1e-4, atol=1e-5)


def test_exported_training_graph_has_the_operations_of_torch() -> None:
    def operations(model: nn.Module) -> list[str]:
        torch._dynamo.reset()  # that of torch 2.7 counts exports as compiled functions
        graph = torch.export.export(model.train(), (X,)).graph
        return sorted(str(node.target) for node in graph.nodes if node.op == "call_function")

    assert operations(MODELS["accelerated"]()) == operations(network())
    assert operations(MODELS["accelerated and frozen"]()) == operations(frozen())
