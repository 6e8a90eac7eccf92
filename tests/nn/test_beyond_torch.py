"""Every layer that torch.nn lacks, in what surrounds the arithmetic: one sweep for all."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, stack_module_state, vmap

import normkit as nk
from tests.few import few
from tests.nn.every_layer import EVERY, Sample

SAMPLES: dict[str, tuple[Sample, dict[str, Any]]] = {
    name: (sample, {}) for name, sample in EVERY.items() if sample.namesake is None
}
SAMPLES |= {
    "FilterResponseNorm2d learning ε": (EVERY["FilterResponseNorm2d"], {"learn_eps": True}),
    "FilterResponseNorm2d without TLU": (EVERY["FilterResponseNorm2d"], {"tlu": False}),
    "ZeroCenteredRMSNorm of two axes": (
        EVERY["ZeroCenteredRMSNorm"],
        {"normalized_shape": (3, 5)},
    ),
    "SwitchableNorm2d without statistics": (
        EVERY["SwitchableNorm2d"],
        {"track_running_stats": False},
    ),
}
# Compiling and exporting take seconds; one rank of each, by the same code, and test_behaviour.py
# compiles the layers that batch normalization is part of.
COMPILED = [
    name for name in SAMPLES
    if not name.endswith(("1d", "3d")) and not name.startswith(("Ghost", "Batch", "Domain"))
]  # fmt: skip
QUICK = ("AdaptiveGroupNorm", "HalfInstanceNorm2d", "ZeroCenteredRMSNorm", "SwitchableNorm2d")
# Whose statistics are a row of several, chosen by an attribute: one bank takes part.
NO_ENSEMBLE = ("Domain",)


def _made(name: str, **more: Any) -> tuple[Any, Tensor]:
    """A layer with random parameters that has seen a batch, and an input."""
    sample, options = SAMPLES[name]
    torch.manual_seed(0)
    layer = sample.make(**options, **more)
    for p in layer.parameters():
        nn.init.normal_(p)
    layer(torch.randn(sample.shape) + 1)
    return layer, torch.randn(sample.shape) * 2 + 1


def _same(ours: nn.Module, theirs: nn.Module) -> None:
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


@pytest.mark.parametrize("name", few(COMPILED, lambda name: name in QUICK))
def test_compiled_without_a_break(name: str) -> None:
    layer, x = _made(name, act="relu")
    twin, residual = copy.deepcopy(layer), torch.randn_like(x)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    a, b = compiled(leaves[0], residual), twin(leaves[1], residual)
    torch.testing.assert_close(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-4, atol=1e-4)
    _same(layer, twin)


@pytest.mark.filterwarnings("ignore:.*is recorded in training mode:UserWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [n for n in COMPILED if n.startswith("Switchable")])
def test_exported(name: str, training: bool) -> None:
    layer, x = _made(name)
    twin = copy.deepcopy(layer.train(training))
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), twin(x))


def test_exported_for_a_batch_of_any_size() -> None:
    for name in ("FilterResponseNorm2d", "SwitchableNorm2d", "ZeroCenteredRMSNorm",
                 "AdaptiveLayerNorm", "AdaptiveGroupNorm"):  # fmt: skip
        layer, x = _made(name)
        batch = torch.export.Dim("batch", min=2, max=64)
        program = torch.export.export(layer.eval(), (x,), dynamic_shapes=({0: batch},))
        other = torch.cat([x, x + 1])
        torch.testing.assert_close(program.module()(other), layer(other))


@pytest.mark.parametrize("name", SAMPLES)
def test_ensemble(name: str) -> None:
    if name.startswith(NO_ENSEMBLE):
        return
    models = [_made(name)[0].eval() for _ in range(2)]
    x = _made(name)[1]
    with torch.no_grad():
        for p in models[1].parameters():
            p.add_(1)
    params, buffers = stack_module_state(models)  # type: ignore[arg-type]
    base = copy.deepcopy(models[0])
    if not params and not buffers:
        return
    found = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(params, buffers)
    for y, model in zip(found, models, strict=True):
        torch.testing.assert_close(y, model(x))


@pytest.mark.parametrize("name", SAMPLES)
def test_derivatives_in_float64(name: str) -> None:
    layer, x = _made(name)
    layer = layer.double().eval() if "Renorm" in name or "Domain" in name else layer.double()
    layer.momentum = 0.0 if hasattr(layer, "momentum") else None
    x = x.double()[:3]
    x = x[..., :2].requires_grad_() if x.dim() > 3 and "RMS" not in name else x.requires_grad_()
    if "Adaptive" in name or "RMS" in name or x.shape[-1] != 2:
        x = _made(name)[1].double()[:2].requires_grad_()
    names = [key for key, _ in layer.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    inputs = (x, *layer.parameters())
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("name", SAMPLES)
def test_forward_mode(name: str) -> None:
    layer, x = _made(name)
    layer = layer.double().eval()
    x, v = x.double(), torch.randn_like(x.double())
    y, tangent = jvp(layer, (x,), (v,))
    torch.testing.assert_close(y, layer(x))
    # As central differences have it.
    step = 1e-6
    expected = (layer(x + step * v) - layer(x - step * v)) / (2 * step)
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
# Scale multiplies, in the wider type of the two, as multiplying does.
@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "Scale"])
def test_half_types_and_autocast(name: str, dtype: torch.dtype) -> None:
    layer, x = _made(name)
    layer.eval()
    half = x.to(dtype)
    wide = copy.deepcopy(layer)(half.float())
    y = layer(half)
    assert y.dtype == dtype
    # The type of the output is rounded to once; its values are of the size of γ.
    limit = torch.finfo(dtype).eps * float(wide.detach().abs().max())
    torch.testing.assert_close(y.float(), wide, rtol=0, atol=limit)
    assert copy.deepcopy(layer).to(dtype)(half).dtype == dtype
    with torch.autocast("cpu", dtype=dtype):
        assert layer(half).dtype == dtype
        assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("name", [n for n, (s, _) in SAMPLES.items() if len(s.shape) == 4])
def test_channels_last(name: str) -> None:
    layer, x = _made(name)
    last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    usual = x.clone().requires_grad_()
    twin = copy.deepcopy(layer)
    y, expected = layer(last), twin(usual)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy.contiguous())
    torch.testing.assert_close(last.grad, usual.grad)
    _same(layer, twin)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SAMPLES)
def test_no_samples(name: str, training: bool) -> None:
    layer, x = _made(name)
    before = copy.deepcopy(layer.train(training).state_dict())
    empty = x[:0].requires_grad_()
    y = layer(empty)
    y.sum().backward()
    assert y.shape == empty.shape and empty.grad is not None
    for p in layer.parameters():
        assert p.grad is not None and not p.grad.any()
    for key, value in layer.state_dict().items():
        if not key.endswith("num_batches_tracked"):  # PyTorch counts an empty batch too
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("scale", [1e25, 1e-25])
@pytest.mark.parametrize("name", [n for n in SAMPLES if n.startswith(("Filter", "Switch", "Zero"))])
def test_squares_beyond_float32(name: str, scale: float) -> None:
    sample, options = SAMPLES[name]
    layer = sample.make(**options, eps=0.0 if scale < 1 else 1e-6).eval()
    if "Switchable" in name:
        layer = sample.make(track_running_stats=False, eps=layer.eps or 1e-60).eval()
    if "learning" in name:
        nn.init.zeros_(layer.eps_l)
    x = torch.randn(sample.shape)
    expected = copy.deepcopy(layer).double()(x.double())
    torch.testing.assert_close(layer(x * scale).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLES)
def test_copies_pickles_and_graphs(name: str) -> None:
    layer, x = _made(name, act=("leaky_relu", 0.3))
    layer.eval()
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(saved, weights_only=False),
    ):
        assert repr(twin) == repr(layer)
        torch.testing.assert_close(twin(x), layer(x))
    graph = torch.fx.symbolic_trace(nn.Sequential(layer))
    assert [n.op for n in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    torch.testing.assert_close(graph(x), layer(x))


@pytest.mark.parametrize("name", SAMPLES)
def test_on_the_meta_device_and_initialized_later(name: str) -> None:
    sample, options = SAMPLES[name]
    layer = copy.deepcopy(sample.make(**options)).to("meta")
    x = torch.empty(sample.shape, device="meta", requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape and y.device.type == "meta"
    if hasattr(layer, "reset_parameters"):
        made = layer.to_empty(device="cpu")
        made.reset_parameters()
        _same(made, sample.make(**options))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_residual_is_added_before_the_activation(name: str) -> None:
    layer, x = _made(name)
    if name == "FilterResponseNorm2d" or name.startswith("FilterResponse"):
        layer.tau = None  # the threshold is of the sum
    residual = torch.randn_like(x)
    twin = copy.deepcopy(layer)
    layer.act = "silu"
    expected = nn.functional.silu(twin(x) + residual)
    torch.testing.assert_close(layer(x, residual), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_trace(name: str) -> None:
    layer, x = _made(name)
    layer.eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module="torch")
        traced = torch.jit.trace(layer, (x,), check_trace=False)
    other = torch.cat([x, x - 1])
    torch.testing.assert_close(traced(other), layer(other))


def test_all_new_layers_are_here() -> None:
    names = {name for name in nk.nn.__all__ if "Masked" not in name and "Weight" not in name}
    ours = {n for n in names if isinstance(getattr(nk, n), type) and not hasattr(nn, n)} - {"Ramp"}
    assert ours <= set(SAMPLES)
