"""Surgery on sharded models: right, or left and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import normkit as nk
from normkit.compat import release

X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 + 1

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # FSDP asks for an accelerator
    pytest.mark.usefixtures("process_group"),
]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )


def whole() -> nn.Module:
    return fully_shard(network())


def each() -> nn.Module:
    model = network()
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer)
    return fully_shard(model)


def flat(original: bool) -> nn.Module:
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(network(), use_orig_params=original, device_id=cpu)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "fully_shard of the whole": whole,
    "fully_shard of each": each,
    "FSDP": lambda: flat(False),
    "FSDP, original parameters": lambda: flat(True),
}
NO_FSDP2 = pytest.mark.skipif(
    release(torch.__version__) < (2, 7), reason="FSDP2 on a CPU: pytorch#145935, in torch 2.7"
)
CASES = [
    pytest.param(kind, marks=NO_FSDP2 if kind.startswith("fully_shard") else ()) for kind in KINDS
]
TOOLS: dict[str, Callable[[nn.Module], Any]] = {
    "accelerate": nk.accelerate,
    "convert batch": lambda m: nk.convert(m, "batch"),
    "convert ghost": lambda m: nk.convert(m, ("ghost", 8)),
    "convert sync": lambda m: nk.convert(m, "sync"),
    "convert frozen": lambda m: nk.convert(m, "frozen"),
    "convert_sync_batchnorm": nk.SyncBatchNorm.convert_sync_batchnorm,
}


def values(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone()
        for name, t in (*model.named_parameters(), *model.named_buffers())
    }


def train(model: nn.Module, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()(X).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", CASES)
def test_freeze_holds_or_names(kind: str, trained: bool) -> None:
    model = KINDS[kind]()
    if trained:  # FSDP makes its own parameters in the first forward
        train(model)
    handle = nk.freeze(model)
    assert len(handle.changed) == 2
    before = values(model)
    train(model)
    moved = {n for n, t in values(model).items() if not torch.equal(t, before[n])}
    named = any("γ and β" in row.why for row in handle.skipped)
    norms = {n for n in before if "1." in n or "4." in n}
    assert named is (kind == "FSDP") and not moved & norms and moved
    handle.undo()
    train(model)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("kind", CASES)
def test_the_model_trains_as_before(kind: str, tool: str) -> None:
    model, twin = KINDS[kind](), KINDS[kind]()
    for net in (model, twin):
        train(net)
    result = TOOLS[tool](model)
    if tool == "convert frozen":
        assert [row.name for row in result.skipped] and not result.changed
    for net in (model, twin):
        train(net)
    torch.testing.assert_close(list(values(model).values()), list(values(twin).values()))


@NO_FSDP2
@pytest.mark.skipif(release(torch.__version__) < (2, 8), reason="needs torch 2.8")
@pytest.mark.parametrize("each", [False, True])
def test_save_memory_gives_the_same_bits(each: bool) -> None:
    results = []
    for saves in (False, True):
        model = network()
        nk.accelerate(model)
        for layer in model if each else ():
            if list(layer.parameters()):
                fully_shard(layer)
        fully_shard(model)
        if saves:
            assert len(nk.save_memory(model, blocks=True).changed) == 2
        model(X).square().sum().backward()
        results.append([p.grad.full_tensor() for p in model.parameters()])  # type: ignore[union-attr]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
