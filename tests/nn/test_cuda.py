"""The layers on a GPU: against the oracle, against torch.nn, and under autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.nn import BatchRenorm2d, DomainBatchNorm2d
from tests.nn.test_behaviour import network
from tests.nn.test_oracle import CASES, TYPES, _prepare, _with_gradients
from tests.tolerances import assert_accurate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_against_the_oracle(name: str, dtype: torch.dtype, last: bool) -> None:
    case = CASES[name]
    layer, x, residual, dy = _prepare(case, (8, 6, 9, 7), dtype, last, offset=0.0)
    layer = layer.cuda()
    other = case.theirs(6).to(layer.weight.dtype).cuda()
    other.load_state_dict(layer.state_dict())
    x, residual = (t.detach().cuda().requires_grad_() for t in (x, residual))
    dy = dy.cuda()
    params, theirs = [layer.weight, layer.bias], [other.weight, other.bias]
    got = _with_gradients(lambda x, r, w, b: layer(x, r), [x, residual, *params], dy)
    truth = _with_gradients(
        lambda x, r, w, b: case.truth(x, w, b) + r.double(), [x, residual, *params], dy
    )
    torchs = _with_gradients(lambda x, r, w, b: other(x) + r, [x, residual, *theirs], dy)
    for what, a, t, p in zip(
        ("y", "dx", "dresidual", "dweight", "dbias"), got, truth, torchs, strict=True
    ):
        assert_accurate(a, t.detach(), p, what)
    assert got[0].is_contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16], ids=str)
def test_types_and_values_are_torchs(training: bool, autocast: torch.dtype | None) -> None:
    theirs, ours = network(nn).cuda().train(training), network(nk).cuda().train(training)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(8, 3, 4, 4, device="cuda")
    with torch.autocast("cuda", dtype=autocast or torch.float16, enabled=autocast is not None):
        for a, b in zip(theirs, ours, strict=True):
            expected, got = a(x), b(x)
            assert got.dtype == expected.dtype, type(a).__name__
            limit = 1e-5 if expected.dtype == torch.float32 else 2e-2
            torch.testing.assert_close(got, expected, rtol=limit, atol=limit)
            x = expected.detach()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend: str) -> None:
    ours = network(nk).cuda()
    twin = copy.deepcopy(ours)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    x = torch.randn(8, 3, 4, 4, device="cuda")
    torch.testing.assert_close(compiled(x), twin(x), rtol=1e-3, atol=1e-3)


def test_no_wait_for_the_device() -> None:
    """A training step reads nothing back from the GPU, whatever the average."""
    layers = [nk.BatchNorm2d(4, average=a) for a in ("exponential", "cumulative", "debiased")]
    others = [nk.GroupNorm(2, 4), nk.GhostBatchNorm2d(4, 3), DomainBatchNorm2d(4, 1),
              BatchRenorm2d(4)]  # fmt: skip
    model = nn.Sequential(*layers, *others).cuda()
    x = torch.randn(8, 4, 5, 5, device="cuda")
    model(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
