"""Graphs as short as torch.nn's: a node for a namesake, one for a residual, one for an activation.

Of a trace, whose operations cost next to nothing to list. An exported graph comes from the same
calls; test_recorded.py compares some.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.few import few
from tests.nn.every_layer import EVERY

ACTS: dict[str | None, nn.Module] = {
    None: nn.Identity(), "relu": nn.ReLU(), "silu": nn.SiLU(), "gelu": nn.GELU(),
    "leaky_relu": nn.LeakyReLU(),
}  # fmt: skip
FORMS: dict[str, tuple[dict[str, Any], ...]] = {
    "Batch": ({}, {"affine": False}, {"bias": False}, {"track_running_stats": False},
              {"momentum": None}),
    "Instance": ({}, {"affine": True}, {"affine": True, "track_running_stats": True}),
    "Group": ({}, {"affine": False}, {"bias": False}),
    "Layer": ({}, {"elementwise_affine": False}, {"bias": False}, {"normalized_shape": (3, 5)}),
    "RMS": ({}, {"elementwise_affine": False}, {"eps": 1e-5}, {"normalized_shape": (3, 5)}),
}  # fmt: skip
# A namesake, options of its constructor, and the shape of an input.
CASES = [
    (name, options, shape)
    for name, sample in EVERY.items()
    if sample.namesake and issubclass(sample.cls, sample.namesake) and not name.startswith("Lazy")
    for kind, forms in FORMS.items() if name.startswith(kind)
    for shape in {"BatchNorm1d": [sample.shape, sample.shape[:2]],
                  "InstanceNorm2d": [sample.shape, sample.shape[1:]],
                  "GroupNorm": [sample.shape, (6, 4), (6, 4, 5), (2, 4, 3, 2, 5)]}.get(
                      name, [sample.shape])
    for options in forms
]  # fmt: skip


class Added(nn.Module):
    """torch.nn's layer with what ours does in addition."""

    def __init__(self, norm: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.act = norm, act

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z = self.norm(x)
        return self.act(z if residual is None else z + residual)


def operations(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module="torch")
        graph = torch.jit.trace(module, inputs, check_trace=False).inlined_graph
    return [node.kind() for node in graph.nodes() if node.kind().startswith("aten::")]


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    few(CASES, lambda name, _, shape: name[-2:] not in ("1d", "3d") or len(shape) == 2),
    ids=lambda value: str(value).replace(" ", ""),
)
def test_operations_are_those_of_torch(
    name: str, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    sample = EVERY[name]
    x, residual = torch.randn(2, *shape).unbind()
    theirs = sample.theirs(**options)
    number = CASES.index((name, options, shape))
    acts = (None, list(ACTS)[1 + number % (len(ACTS) - 1)])  # the others go round
    # A trace of torch.nn's cumulative average holds the share of the batch that it was made with.
    for training in (False,) if "momentum" in options else (True, False):
        for act in acts:
            ours = sample.make(**options, act=act).train(training)
            twin = Added(theirs, ACTS[act]).train(training)
            for inputs in ((x,), (x, residual)):
                found, expected = operations(ours, inputs), operations(twin, inputs)
                # Counting batches may come after the normalization, which does not need the count.
                assert sorted(found) == sorted(expected), (act, training, len(inputs))


@pytest.mark.parametrize("name", ["BatchNorm2d", "LayerNorm", "RMSNorm", "InstanceNorm2d"])
def test_exported_with_residual_and_activation(name: str) -> None:
    sample = EVERY[name]
    x, residual = torch.randn(2, *sample.shape).unbind()
    ours, theirs = sample.make(act="silu"), Added(sample.namesake(**sample.needs), nn.SiLU())
    found, expected = (
        sorted(
            str(node.target)
            for node in torch.export.export(module.eval(), (x, residual)).graph.nodes
            if node.op == "call_function"
        )
        for module in (ours, theirs)
    )
    assert found == expected
    assert len(found) == 3


def test_exported_for_any_number_of_samples() -> None:
    shapes = {"x": {0: torch.export.Dim("n", min=2)}}
    for name in ("BatchNorm2d", "GroupNorm", "LayerNorm"):
        sample = EVERY[name]
        exported = [
            torch.export.export(
                Added(layer.eval(), nn.ReLU()),
                (torch.randn(sample.shape),),
                dynamic_shapes=shapes,
            )
            for layer in (sample.make(), sample.namesake(**sample.needs))
        ]
        ours, theirs = (
            sorted(str(n.target) for n in e.graph.nodes if n.op == "call_function")
            for e in exported
        )
        assert ours == theirs
        x = torch.randn(9, *sample.shape[1:])
        torch.testing.assert_close(*(e.module()(x) for e in exported))


def test_symbolic_trace_keeps_a_layer_as_one_node() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nk.BatchNorm2d(4, act="relu"), nk.GroupNorm(2, 4))
    nodes = [node.op for node in torch.fx.symbolic_trace(model).graph.nodes]
    assert nodes == ["placeholder", *["call_module"] * 3, "output"]
