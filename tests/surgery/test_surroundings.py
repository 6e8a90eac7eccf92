"""accelerate: before and after compile, export, trace and wrappers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import normkit as nk
from tests.surgery.models import ConvNormAct
from tests.surgery.test_accelerate import assert_alike


def network() -> tuple[nn.Sequential, nn.Sequential, torch.Tensor]:
    model = nn.Sequential(
        ConvNormAct(3, 8, nn.ReLU), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(),
        nn.Linear(128, 8), nn.LayerNorm(8), nn.GELU(),
    ).double()  # fmt: skip
    return model, copy.deepcopy(model), torch.randn(4, 3, 4, 4, dtype=torch.float64)


def test_compile_after_accelerate() -> None:
    model, twin, x = network()
    nk.accelerate(model)
    torch._dynamo.reset()
    assert_alike(torch.compile(model, fullgraph=True, backend="aot_eager")._orig_mod, twin, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))


def test_compile_before_accelerate() -> None:
    model, twin, x = network()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), twin(x))
    handle = nk.accelerate(compiled)
    assert len(handle.changed) == 3
    torch.testing.assert_close(compiled(x), twin(x))
    handle.undo()
    torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool) -> None:
    model, twin, x = network()
    nk.accelerate(model.eval())
    program = torch.export.export(model, (x,), strict=strict)
    assert set(program.state_dict) == set(twin.state_dict())
    torch.testing.assert_close(program.module()(x), twin.eval()(x))


def test_fx_trace_before_and_after() -> None:
    model, twin, x = network()
    nk.accelerate(model)
    graph = torch.fx.symbolic_trace(model)
    plain = torch.fx.symbolic_trace(twin)
    assert [n.target for n in graph.graph.nodes] == [n.target for n in plain.graph.nodes]
    assert_alike(graph, twin, x)
    model, twin, x = network()
    graph = torch.fx.symbolic_trace(model)
    assert len(nk.accelerate(graph).changed) == 3
    assert_alike(graph, twin, x)


def test_vmap_and_grad() -> None:
    model, twin, x = network()
    nk.accelerate(model.eval())
    twin.eval()

    def loss(net: nn.Module, params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(net, params, (x[None],)).square().sum()

    found = []
    for net in (model, twin):
        params = {k: p.detach() for k, p in net.named_parameters()}
        each = vmap(grad(lambda p, x, net=net: loss(net, p, x)), in_dims=(None, 0))
        found.append(each(params, x))
    torch.testing.assert_close(*found)


def test_autocast() -> None:
    model, twin, x = network()
    nk.accelerate(model.float())
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = model(x.float()), twin.float()(x.float())
    assert ours.dtype == theirs.dtype


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel() -> None:
    model, twin, x = network()
    handle = nk.accelerate(model)
    ddp = nn.parallel.DistributedDataParallel(model)
    assert_alike(ddp.module, twin, x)
    torch.testing.assert_close(ddp(x), twin(x))
    handle.undo()
    assert len(nk.accelerate(ddp).changed) == 3
    torch.testing.assert_close(ddp(x), twin(x))
