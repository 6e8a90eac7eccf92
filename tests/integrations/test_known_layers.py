"""``accelerate`` on layers of other libraries: the same object, the same results, the way back."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.nn.foreign import compute, original_class
from normkit.nn.freezing import base_class, is_frozen
from normkit.nn.norm_spec import equivalent, norm_spec
from tests.integrations.stand_ins import CASES, IMAGE, C, Case, build, installed
from tests.tolerances import assert_accurate

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.name}-{c.shape}")


def step(layer: nn.Module, x: Tensor, training: bool = True) -> list[Tensor]:
    """Output, gradients and buffers of one call."""
    layer.train(training)
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
    grads = torch.autograd.grad(y, leaves, dy)
    return [y.detach(), *grads, *(b.clone() for b in layer.buffers())]


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_results_are_those_of_the_original(case: Case, dtype: torch.dtype) -> None:
    layer, x = build(case)
    layer, x = layer.to(dtype), x.to(dtype)
    ours, truth = copy.deepcopy(layer), copy.deepcopy(layer).double()
    keys, repr_before = list(ours.state_dict()), repr(ours)
    handle = nk.accelerate(ours)
    (row,) = handle.changed
    assert not handle.skipped and bool(row.fused) is case.fused
    assert isinstance(ours, case.cls) and type(ours).__qualname__ == case.cls.__qualname__
    assert list(ours.state_dict()) == keys and repr(ours) == repr_before
    assert compute(ours, norm_spec(ours), x) is not None, "left to the library's own forward"
    assert ours(x).stride() == layer(x).stride()
    if case.shape == IMAGE:
        x = x.contiguous(memory_format=torch.channels_last)
        assert ours(x).stride() == layer(x).stride()
        x = x.contiguous()
    for training in (True, False):
        ours.load_state_dict(layer.state_dict())
        results = step(ours, x, training), step(copy.deepcopy(layer), x, training)
        true = step(copy.deepcopy(truth), x.double(), training)
        for a, b, c in zip(*results, true, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            if not a.is_floating_point():
                assert torch.equal(a, b)
            elif dtype == torch.float64:  # some of them compute in float32 whatever the type
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            else:
                assert_accurate(a, c, b, case.name)


@EVERY
def test_undo_is_exact(case: Case) -> None:
    layer, x = build(case)
    before = dict(vars(layer))
    handle = nk.accelerate(layer)
    step(layer, x)
    handle.undo()
    assert type(layer) is case.cls and vars(layer).keys() == before.keys()
    reference = copy.deepcopy(layer)
    assert all(map(torch.equal, step(layer, x, False), step(reference, x, False)))
    assert nk.accelerate(layer).changed


@EVERY
def test_copies_and_pickles_stay_accelerated_and_frozen(case: Case) -> None:
    layer, x = build(case)
    with installed(case.cls):
        nk.accelerate(layer)
        expected = step(copy.deepcopy(layer), x, False)[0]
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=False)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), saved):
            assert type(other) is type(layer)
            assert torch.equal(step(other, x, False)[0], expected)
        if not [*layer.buffers()] or not [*layer.parameters()]:
            return
        nk.freeze(layer)
        other = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
        assert is_frozen(other) and original_class(base_class(type(other))) is case.cls
        assert torch.equal(step(other, x)[0], expected)


@EVERY
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_whatever_is_unusual_is_computed_by_the_original(case: Case) -> None:
    layer, x = build(case)
    ours = copy.deepcopy(layer)
    nk.accelerate(ours)
    layer.eval(), ours.eval()

    def same(call: Callable[[nn.Module], Any]) -> None:
        a, b = call(ours), call(layer)
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)

    with torch.autocast("cpu", torch.bfloat16):
        same(lambda m: m(x))
        same(lambda m: m(x.bfloat16()))
    try:
        layer(x.double())
    except RuntimeError:
        pass
    else:
        same(lambda m: m(x.double()))
    try:
        layer(x.bfloat16())
    except RuntimeError:
        pass
    else:
        same(lambda m: m(x.bfloat16()))
    same(lambda m: torch.func.vmap(m)(x[None])[0])
    same(lambda m: torch.func.jvp(m, (x,), (x,))[1])
    same(lambda m: torch.jit.trace(m, x)(x))
    assert ours(x[:0]).shape == layer(x[:0]).shape


@pytest.mark.parametrize("case", [CASES[i] for i in (0, 12, 16)], ids=lambda c: c.name)
def test_exports_the_graph_of_the_original(case: Case) -> None:
    layer, x = build(case)
    ours = copy.deepcopy(layer.eval())
    nk.accelerate(ours)
    graphs = [torch.export.export(m, (x,)).graph for m in (ours, layer)]
    assert len({str([(n.name, n.target) for n in graph.nodes]) for graph in graphs}) == 1


def test_scripts_as_the_original_does() -> None:
    case = next(c for c in CASES if c.name.endswith("torchvision.ops.misc.FrozenBatchNorm2d"))
    layer, x = build(case)
    nk.accelerate(layer)
    expected = layer(x)
    torch.testing.assert_close(torch.jit.script(layer)(x), expected)
    assert isinstance(layer, case.cls) and torch.equal(layer(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:1] + CASES[16:17])
def test_compiles_to_the_original_graph(case: Case) -> None:
    layer, x = build(case)
    ours = copy.deepcopy(layer)
    nk.accelerate(ours)
    graphs: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls = [node.target for node in graph.graph.nodes if node.op != "placeholder"]
        graphs.append(str(calls))
        return graph.forward

    for m in (layer, ours):
        torch._dynamo.reset()
        torch.compile(m, backend=backend, fullgraph=True)(x)
    assert len(set(graphs)) == 1


BATCH = CASES[0]


def test_the_activation_is_looked_up_in_each_call() -> None:
    layer, x = build(BATCH)
    nk.accelerate(layer)
    layer.eval()
    plain = equivalent(layer)[0](x)  # type: ignore[index]
    assert bool((layer(x) == plain).all()) and bool((plain == 0).any())
    layer.act = nn.Hardtanh()
    assert bool((layer(x) < 0).any())
    layer.act = nn.ReLU()
    seen: list[Tensor] = []
    hook = layer.act.register_forward_hook(lambda m, args, y: seen.append(y))
    assert torch.equal(layer(x), seen[0])
    hook.remove()
    layer.drop = nn.Dropout(1.0)
    assert torch.equal(layer.train()(x), torch.zeros_like(x))
    layer.drop = nn.Identity()
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda m, args, y: seen.append(m)  # type: ignore[arg-type]
    )
    layer(x)
    handle.remove()
    assert [type(m) for m in seen[1:]] == [nn.Identity, nn.ReLU, type(layer)]


def test_statistics_are_updated_once_where_a_checkpoint_recomputes() -> None:
    from torch.utils.checkpoint import checkpoint

    layer, x = build(BATCH)
    nk.accelerate(layer)
    layer(x)
    x.requires_grad_()
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert int(layer.num_batches_tracked) == 2


@pytest.mark.parametrize("options", [
    {"momentum": None}, {"momentum": 0.3, "eps": 1e-3}, {"affine": False},
    {"track_running_stats": False},
])  # fmt: skip
def test_options_of_batch_normalization(options: dict[str, Any]) -> None:
    layer = BATCH.cls(**options)
    x = build(BATCH)[1]
    ours = copy.deepcopy(layer)
    assert nk.accelerate(ours).changed
    for training in (True, True, False):
        for a, b in zip(step(ours, x, training), step(layer, x, training), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_shared_and_wrapped_layers_and_the_model_itself() -> None:
    layer, x = build(BATCH)
    model = nn.Sequential(layer, nn.Conv2d(C, C, 1), layer)
    handle = nk.accelerate(torch.optim.swa_utils.AveragedModel(model))
    assert len(handle.changed) == 1
    handle = nk.accelerate(model)
    assert len(handle.changed) == 1 and model[0] is model[2] is layer
    model(x)
    assert not nk.accelerate(model).changed  # done already
    with torch.device("meta"):
        empty = BATCH.cls()
    assert nk.accelerate(empty).changed and empty.weight.is_meta


def test_second_derivatives() -> None:
    for case in CASES:
        layer, x = build(case)
        layer, x = layer.double().eval(), x.double()[:2]
        ours = copy.deepcopy(layer)
        nk.accelerate(ours)
        results = []
        for m in (ours, layer):
            at = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(m(at).pow(3).sum(), at, create_graph=True)
            results.append(torch.autograd.grad(grad.pow(2).sum(), at)[0])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@EVERY
def test_equivalent_layer_computes_the_same(case: Case) -> None:
    layer, x = build(case)
    layer.eval()
    spec = norm_spec(layer)
    assert spec is not None
    pair = equivalent(layer)
    if spec.offset or spec.weight is None:
        assert pair is None
        return
    ours, rest = pair  # type: ignore[misc]
    assert type(ours) is spec.layer and bool(rest) is (
        type(getattr(layer, "act", None)) is nn.Hardswish
    )
    y = ours(x)
    for module in rest:
        y = module(y)
    torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-5)
    assert repr(ours)
    pickle.dumps(ours)
    if getattr(layer, "weight", None) is not None:
        assert ours.weight is layer.weight
    vars(ours)["eps"] = 7.0
    ours.weight = None
    assert getattr(layer, "eps", 0) != 7.0 and getattr(layer, "weight", 0) is not None
