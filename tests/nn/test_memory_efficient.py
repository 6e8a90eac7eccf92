"""memory_efficient: the output kept in place of the input, right or not at all."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.bench.memory import live_bytes
from normkit.compat import release
from normkit.kernels import cpu, from_output

LAYERS: dict[str, Callable[..., Any]] = {"LayerNorm": nk.LayerNorm, "RMSNorm": nk.RMSNorm}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["fused", "portable"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "portable":
        monkeypatch.setattr(from_output, "_fused", lambda *_: False)
    elif cpu.fused is None:
        pytest.skip("no fused kernels")
    return str(request.param)


def gradients(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    return list(torch.autograd.grad(layer(x), [x, *layer.parameters()], dy))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(24,), (3, 5)], ids=str)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients(
    name: str, options: dict[str, bool], shape: tuple[int, ...], dtype: torch.dtype, kernels: str
) -> None:
    if name == "RMSNorm" and "bias" in options:
        pytest.skip("RMSNorm has no bias")
    layer = LAYERS[name](shape, memory_efficient=True, **options)
    with torch.no_grad():
        for p in layer.parameters():
            p.uniform_(0.5, 2)
            p.mul_(torch.randn_like(p).sign())
    layer = layer.to(dtype)
    x = (3 * torch.randn(4, 7, *shape) + 100).to(dtype)
    dy = torch.randn_like(x)
    node = layer(x.requires_grad_()).grad_fn
    while node is not None and "FromOutput" not in type(node).__name__:
        node = node.next_functions[0][0] if node.next_functions else None
    assert node is not None
    usual = copy.deepcopy(layer)
    usual.memory_efficient = False
    exact = gradients(usual.double(), x.double(), dy.double())
    results = gradients(layer, x, dy)
    usual.load_state_dict(layer.state_dict())
    others = gradients(usual.to(dtype), x, dy)
    for result, other, right in zip(results, others, exact, strict=True):
        scale = right.abs().max()
        error = (result.double() - right).abs().max() / scale
        usual_error = (other.double() - right).abs().max() / scale
        # What rounding takes from the output counts once, |β/γ| ≤ 4 times at most. What is exact
        # for others loses digits of values near 100 in float64.
        lost = 100 / 3 if dtype == torch.float64 else 1
        assert error <= 2 * usual_error + 8 * lost * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", LAYERS)
def test_the_input_is_not_kept(name: str) -> None:
    def residual_stream(memory_efficient: bool) -> int:
        layers = [LAYERS[name](64, memory_efficient=memory_efficient) for _ in range(4)]
        linears = [nn.Linear(64, 64) for _ in range(4)]
        x = torch.randn(8, 32, 64, requires_grad=True)

        def run() -> Tensor:
            h = x * 1
            for layer, linear in zip(layers, linears, strict=True):
                h = h + linear(layer(h))
            return h

        return live_bytes(run)

    one = 8 * 32 * 64 * 4
    # The last sum is the result, in both.
    assert residual_stream(True) < residual_stream(False) - 3.9 * one


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", ["zero", "tiny", "large bias", "residual", "infinite"])
def test_the_input_is_kept_where_the_output_does_not_tell_it(name: str, case: str) -> None:
    layer, other = (LAYERS[name](16, memory_efficient=m) for m in (True, False))
    residual = torch.randn(8, 16) if case == "residual" else None
    with torch.no_grad():
        if case == "zero":
            layer.weight[3] = 0
        elif case == "tiny":
            layer.weight[3] = 1e-30
        elif case == "large bias" and name == "LayerNorm":
            layer.weight[3], layer.bias[3] = 0.01, 1.0
        elif case == "infinite":
            layer.weight[3] = torch.inf
    other.load_state_dict(layer.state_dict())
    x = torch.randn(8, 16, requires_grad=True)
    if case == "large bias" and name == "RMSNorm":
        pytest.skip("RMSNorm has no bias")
    results = [m(x, residual) for m in (layer, other)]
    assert torch.equal(*results)
    assert "FromOutput" not in str(results[0].grad_fn)
    dy = torch.randn(8, 16)
    for a, b in zip(*(torch.autograd.grad(y, x, dy) for y in results), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", LAYERS)
def test_values_whose_squares_exceed_float32(name: str) -> None:
    layer = LAYERS[name](8, memory_efficient=True)
    x = torch.tensor([[1e25, -2e25, 3e25, 1e24] * 2]).requires_grad_()
    torch.testing.assert_close(layer(x), LAYERS[name](8)(x))


@pytest.mark.parametrize("name", LAYERS)
def test_what_it_refuses(name: str) -> None:
    with pytest.raises(nk.OptionError, match="without an activation"):
        LAYERS[name](4, act="relu", memory_efficient=True)
    with pytest.raises(nk.TypeMismatchError, match="memory_efficient"):
        LAYERS[name](4, memory_efficient="yes")
    layer = LAYERS[name](4, memory_efficient=True)
    x = torch.randn(2, 4, requires_grad=True)
    (g,) = torch.autograd.grad(layer(x).square().sum(), x, retain_graph=True)
    with pytest.raises(nk.OptionError, match="memory_efficient"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    y = layer(x)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        y.sum().backward()
    layer.act = "relu"  # then the input is kept
    assert torch.equal(layer(x), torch.relu(LAYERS[name](4)(x)))
    assert g.shape == x.shape


@pytest.mark.parametrize("name", LAYERS)
def test_copies_states_and_repr(name: str) -> None:
    layer = LAYERS[name](4, memory_efficient=True)
    assert repr(layer).endswith(", memory_efficient=True)")
    assert "memory_efficient" not in repr(LAYERS[name](4))
    assert layer.state_dict().keys() == LAYERS[name](4).state_dict().keys()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.memory_efficient and repr(other) == repr(layer)
    with torch.no_grad():
        assert torch.equal(layer(torch.ones(2, 4)), LAYERS[name](4)(torch.ones(2, 4)))
    assert layer(torch.randn(0, 4, requires_grad=True)).shape == (0, 4)


@pytest.mark.parametrize("name", LAYERS)
def test_batched_gradients_and_transforms(name: str, kernels: str) -> None:
    layer, other = (LAYERS[name](6, memory_efficient=m) for m in (True, False))
    x = torch.randn(3, 6, requires_grad=True)
    dys = torch.randn(5, 3, 6)
    rows = [torch.autograd.grad(m(x), x, dys, is_grads_batched=True)[0] for m in (layer, other)]
    torch.testing.assert_close(*rows)
    jacobians = [torch.func.jacrev(m)(x.detach()) for m in (layer, other)]
    torch.testing.assert_close(*jacobians)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), other(x))


@pytest.mark.skipif(release(torch.__version__) < (2, 8), reason="needs torch 2.8")
def test_with_save_memory_and_autocast() -> None:
    model = nn.Sequential(
        nn.Linear(8, 16), nk.LayerNorm(16, memory_efficient=True), nn.Linear(16, 8), nk.RMSNorm(8)
    )
    x = torch.randn(4, 8)

    def grads() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).float().square().sum()
        return list(torch.autograd.grad(loss, model.parameters()))

    before = grads()
    nk.save_memory(model)
    for a, b in zip(before, grads(), strict=True):
        assert torch.equal(a, b)
