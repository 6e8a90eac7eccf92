"""Layers whose scale and shift are inputs: the oracle, shapes, and every mode around them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

import normkit as nk
from normkit.core import reference
from normkit.nn import explain


class Case(NamedTuple):
    """A layer, the oracle's way to its result, an input's shape, the shape of scale and shift."""

    make: Callable[..., Any]
    truth: Callable[[Tensor, Tensor, Tensor], Tensor]
    shape: tuple[int, ...]
    scale: tuple[int, ...]


def _layer(axes: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda x, s, t: reference.adaptive_layer_norm(x, axes, s, t)


def _group(groups: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda x, s, t: reference.adaptive_group_norm(x, groups, s, t)


CASES = {
    "tokens": Case(lambda **o: nk.AdaptiveLayerNorm(12, **o), _layer(1), (3, 7, 12), (3, 12)),
    "rows": Case(lambda **o: nk.AdaptiveLayerNorm(12, **o), _layer(1), (5, 12), (5, 12)),
    "video": Case(lambda **o: nk.AdaptiveLayerNorm(12, **o), _layer(1), (2, 3, 4, 12), (2, 12)),
    "two axes": Case(
        lambda **o: nk.AdaptiveLayerNorm((4, 6), **o), _layer(2), (3, 5, 4, 6), (3, 4, 6)
    ),
    "groups": Case(lambda **o: nk.AdaptiveGroupNorm(3, 6, **o), _group(3), (4, 6, 5, 5), (4, 6)),
    "style": Case(lambda **o: nk.AdaptiveGroupNorm(6, 6, **o), _group(6), (4, 6, 5, 5), (4, 6)),
    "sound": Case(lambda **o: nk.AdaptiveGroupNorm(2, 6, **o), _group(2), (4, 6, 9), (4, 6)),
}
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def _inputs(case: Case, dtype: torch.dtype = torch.float32, offset: float = 0.0) -> list[Tensor]:
    x = (torch.randn(case.shape, dtype=torch.float64) * 2 + 1 + offset).to(dtype)
    scale, shift = torch.randn(2, *case.scale, dtype=torch.float64).to(dtype).unbind()
    return [t.clone().requires_grad_() for t in (x, scale, shift)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_against_the_oracle(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    inputs = _inputs(case, dtype)
    x, scale, shift = inputs
    y, truth = case.make()(x, scale=scale, shift=shift), case.truth(x, scale, shift)
    dy = torch.randn_like(y)
    results = [y, *torch.autograd.grad(y, inputs, dy)]
    expected = [truth, *torch.autograd.grad(truth, inputs, dy.double())]
    for got, right in zip(results, expected, strict=True):
        assert got.dtype == dtype
        # The output of a layer normalization in a half type is rounded before it is modulated.
        limit = 8 * torch.finfo(dtype).eps * max(1.0, float(right.detach().abs().max()))
        assert float((got.double() - right).detach().abs().max()) <= limit


def test_of_groups_is_one_operation() -> None:
    """One pass, of the usual kernels: nothing of the normalized input is kept or written twice."""
    layer, inputs = nk.AdaptiveGroupNorm(2, 6, act="relu"), _inputs(CASES["groups"])
    x, scale, shift = inputs
    calls = []
    layer._normalize = lambda call: calls.append(call) or nk.GroupNorm._normalize(call)  # type: ignore[method-assign,func-returns-value]
    y = layer(x, scale=scale, shift=shift)
    assert [(call.x.shape[0], call.spec.pool.groups) for call in calls] == [(1, 8)]
    expected = torch.relu(reference.adaptive_group_norm(x, 2, scale, shift))
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5)


# A shape of scale and shift, and the one with the input's axes that it stands for.
SHAPES: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
    ("tokens", (12,), (1, 1, 12)),
    ("tokens", (1, 12), (1, 1, 12)),
    ("tokens", (3, 12), (3, 1, 12)),
    ("tokens", (1, 7, 12), (1, 7, 12)),
    ("tokens", (3, 7, 12), (3, 7, 12)),
    ("video", (2, 12), (2, 1, 1, 12)),
    ("two axes", (4, 6), (1, 1, 4, 6)),
    ("two axes", (3, 4, 6), (3, 1, 4, 6)),
    ("groups", (6,), (1, 6, 1, 1)),
    ("groups", (1, 6), (1, 6, 1, 1)),
    ("groups", (4, 6, 1, 1), (4, 6, 1, 1)),
    ("groups", (1, 6, 5, 1), (1, 6, 5, 1)),
    ("groups", (4, 6, 5, 5), (4, 6, 5, 5)),
]


@pytest.mark.parametrize(("name", "shape", "full"), SHAPES, ids=str)
def test_shapes_that_broadcast(name: str, shape: tuple[int, ...], full: tuple[int, ...]) -> None:
    layer, x = CASES[name].make(), torch.randn(CASES[name].shape)
    scale, shift = torch.randn(2, *shape).unbind()
    expected = layer(x) * (1 + scale.reshape(full)) + shift.reshape(full)
    torch.testing.assert_close(layer(x, scale=scale, shift=shift), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_other_shapes_and_types_are_refused(name: str) -> None:
    case, (x, scale, shift) = CASES[name], _inputs(CASES[name])
    layer = case.make()
    wrong = [
        scale.repeat_interleave(2, 0),
        scale[..., :-1],
        torch.randn(*scale.shape, 1, 1, 1),
        torch.tensor(1.0),
    ]
    for bad in wrong:
        with pytest.raises(nk.ShapeError, match=r"scale of .*; received scale of shape .* Fix: "):
            layer(x, scale=bad, shift=shift)
        with pytest.raises(nk.ShapeError, match=r"shift of .*; received shift of shape"):
            layer(x, shift=bad)
    with pytest.raises(nk.TypeMismatchError, match="floating-point"):
        layer(x, scale=torch.ones(case.scale, dtype=torch.long))
    with pytest.raises(TypeError):
        layer(x, None, scale, shift)  # either order is in use, so names say which is which


@pytest.mark.parametrize("name", CASES)
def test_one_without_the_other_residual_and_activation(name: str) -> None:
    case = CASES[name]
    x, scale, shift = _inputs(case)
    zero, residual = torch.zeros_like(scale), torch.randn_like(x)
    for kept in ({"scale": scale}, {"shift": shift}, {}):
        full = {"scale": zero, "shift": zero, **kept}
        got = case.make(act="silu")(x, residual, **kept)
        expected = nn.functional.silu(case.truth(x, full["scale"], full["shift"]) + residual)
        torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch")
@pytest.mark.parametrize("name", ["tokens", "groups"])
@pytest.mark.parametrize("mode", ["compiled", "exported", "traced", "graph", "copied"])
def test_in_every_mode(name: str, mode: str) -> None:
    case = CASES[name]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = case.make(act="relu")

        def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            return self.norm(x, scale=scale, shift=shift)

    model = Model()
    inputs = tuple(t.detach() for t in _inputs(case))
    if mode == "compiled":
        torch._dynamo.reset()
        other: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    elif mode == "exported":
        other = torch.export.export(model, inputs).module()
    elif mode == "traced":
        other = torch.jit.trace(model, inputs)
    elif mode == "graph":
        other = torch.fx.symbolic_trace(model)
        assert [n.op for n in other.graph.nodes] == ["placeholder"] * 3 + ["call_module", "output"]
    else:
        other = copy.deepcopy(model)
    torch.testing.assert_close(other(*inputs), model(*inputs))


@pytest.mark.parametrize("name", CASES)
def test_derivatives_of_derivatives_and_vmap(name: str) -> None:
    case = CASES[name]
    layer, (x, scale, shift) = case.make(), _inputs(case, torch.float64)

    def call(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return layer(x, scale=scale, shift=shift)

    assert torch.autograd.gradcheck(call, (x, scale, shift), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, scale, shift), fast_mode=True)
    conditions = torch.stack([scale, -scale]).detach()
    got = vmap(lambda s: functional_call(layer, {}, (x,), {"scale": s, "shift": shift}))(conditions)
    torch.testing.assert_close(got[1], layer(x, scale=-scale, shift=shift))


def test_channels_last_and_no_samples() -> None:
    layer, (x, scale, shift) = nk.AdaptiveGroupNorm(2, 6), _inputs(CASES["groups"])
    last = x.detach().contiguous(memory_format=torch.channels_last)
    y = layer(last, scale=scale, shift=shift)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer(x, scale=scale, shift=shift), rtol=1e-4, atol=1e-5)
    for name, case in CASES.items():
        none = [torch.empty(0, *shape[1:]) for shape in (case.shape, case.scale, case.scale)]
        assert case.make()(none[0], scale=none[1], shift=none[2]).shape == none[0].shape, name


@pytest.mark.parametrize("name", CASES)
def test_autocast_and_mixed_types(name: str) -> None:
    """A condition is often float32 where the input is not: the result has the input's type."""
    case = CASES[name]
    x, scale, shift = (t.detach() for t in _inputs(case, torch.bfloat16))
    for condition in ((scale.float(), shift.float()), (scale.float(), shift)):
        y = case.make()(x, scale=condition[0], shift=condition[1])
        assert y.dtype == torch.bfloat16
        truth = case.truth(x, scale, shift)
        torch.testing.assert_close(y.double(), truth, rtol=0.02, atol=0.04)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert case.make()(x, scale=scale, shift=shift).dtype == torch.bfloat16


def test_explain_of_the_unmodulated_layer() -> None:
    assert explain.explain(nk.AdaptiveLayerNorm(5), torch.randn(3, 5))[-1].endswith("used")


def test_one_sample_without_a_batch_axis() -> None:
    layer, x = nk.AdaptiveLayerNorm(8), torch.randn(8)
    scale, shift = torch.randn(8), torch.randn(8)
    y = layer(x, scale=scale, shift=shift)
    assert y.shape == x.shape
    expected = layer(x[None], scale=scale, shift=shift)[0]
    torch.testing.assert_close(y, expected)
