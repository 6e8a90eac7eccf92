"""convert from every kind of layer to every other: evaluation where it is to stay, undo exact."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import normkit as nk
from normkit.nn.freezing import base_class
from normkit.surgery.conversion.kinds import KINDS
from tests.few import few
from tests.releases import ROUNDS_IN_EVALUATION

C = 4
SHAPES = {"0d": (6, C), "1d": (6, C, 5), "2d": (6, C, 3, 5), "3d": (3, C, 2, 3, 4)}
TO: list[Any] = [
    "batch", "sync", ("ghost", 2), "renorm", ("domain", 1), "frozen", "group", ("group", 2),
    "layer", "instance", "torch",
]  # fmt: skip
NAMES = {to: to[0] for to in TO if isinstance(to, tuple)}
Make = Callable[[str], Any]


def by_rank(package: Any, stem: str, *sizes: int, **options: Any) -> Make:
    return lambda d: getattr(package, stem + d.replace("0", "1"))(C, *sizes, **options)


SOURCES: dict[str, Make] = {
    "torch": by_rank(nn, "BatchNorm"),
    "ours": by_rank(nk, "BatchNorm", act=("leaky_relu", 0.2), momentum=0.3),
    "debiased": by_rank(nk, "BatchNorm", average="debiased"),
    "no affine": by_rank(nn, "BatchNorm", affine=False),
    "no β": by_rank(nk, "BatchNorm", bias=False),
    "no statistics": by_rank(nn, "BatchNorm", track_running_stats=False),
    "ghost": by_rank(nk, "GhostBatchNorm", 3),
    "renorm": by_rank(nk, "BatchRenorm", act="relu"),
    "one domain": by_rank(nk, "DomainBatchNorm", 1),
    "constant": by_rank(nk, "FrozenBatchNorm", act="silu"),
    "frozen": by_rank(nn, "BatchNorm"),
    "sync": lambda d: nk.SyncBatchNorm(C),
    "torch's sync": lambda d: nn.SyncBatchNorm(C),
    "instance": by_rank(nn, "InstanceNorm"),
    "affine instance": by_rank(nk, "InstanceNorm", affine=True, act="relu"),
    "tracking instance": by_rank(nn, "InstanceNorm", affine=True, track_running_stats=True),
    "group": lambda d: nn.GroupNorm(2, C),
    "our group": lambda d: nk.GroupNorm(1, C, act="gelu"),
    "pixels": lambda d: nk.LayerNorm2d(C),
}


def source(name: str, d: str) -> Any:
    layer: Any = SOURCES[name](d)
    for key, tensor in layer.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + (0.5 if "var" in key else -0.2))
    if name == "frozen":
        nk.freeze(layer)
    return layer


def valid(name: str, d: str) -> bool:
    """Return whether the layer takes such inputs itself."""
    if name == "pixels":
        return d == "2d"
    return not (d == "0d" and "instance" in name)


def snapshot(model: nn.Module) -> list[Any]:
    rows: list[Any] = []
    for name, m in model.named_modules(remove_duplicate=False):
        tensors = [*m._parameters.items(), *m._buffers.items()]
        rows.append((name, id(m), type(m), sorted(vars(m)), m.training))
        rows.append([(k, None if t is None else (id(t), t.requires_grad)) for k, t in tensors])
    return rows


def same_states(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    def same(x: Tensor, y: Tensor) -> bool:
        close = ROUNDS_IN_EVALUATION and x.shape == y.shape
        return torch.equal(x, y) or (close and torch.allclose(x, y, 0, 1e-6))

    return list(a) == list(b) and all(same(a[k], b[k]) for k in a)


# Every pair once, by turns with inputs of all ranks and with batches or without; the rest is slow.
CASES = list(itertools.product(SOURCES, TO, SHAPES, (False, True)))
FEW = {case for i, case in enumerate(CASES) if (i // 8 + i // 88) % 8 == i % 8}


@pytest.mark.filterwarnings("ignore:convert changed nothing")
@pytest.mark.parametrize(
    ("name", "to", "d", "solved"),
    few((case for case in CASES if valid(case[0], case[2])), lambda *case: case in FEW),
)
def test_every_pair(name: str, to: Any, d: str, solved: bool) -> None:
    x = torch.randn(SHAPES[d], generator=torch.Generator().manual_seed(0)) * 2 + 1
    model = nn.Sequential(nn.Identity(), source(name, d), nn.Identity())
    layer, parameters = model[1], list(model.parameters())
    model.train()
    before, state = snapshot(model), copy.deepcopy(model.state_dict())
    expected = copy.deepcopy(model).eval()(x)
    handle = nk.convert(model, to, batches=[x] if solved else None)
    differs = "train the network again" in repr(handle)
    after = model[1][0] if isinstance(model[1], nn.Sequential) else model[1]
    assert after is layer and len(handle.changed) + len(handle.skipped) <= 1
    if not handle.changed:
        assert snapshot(model) == before
    elif to != "torch":
        assert base_class(type(layer)) in KINDS[to[0] if type(to) is tuple else to].forms.values()
    y = model.eval()(x)
    if not differs:
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    elif solved and layer.weight is not None and getattr(layer, "act", 1) is None:
        axes = [i for i in range(x.dim()) if i != 1]
        if layer.bias is not None:
            torch.testing.assert_close(y.mean(axes), expected.mean(axes), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(y.std(axes), expected.std(axes), rtol=1e-3, atol=1e-3)
    kept = [p for p in model.parameters() if any(p is q for q in parameters)]
    new = "new parameters" in repr(handle)
    assert new or to == "frozen" or len(kept) == len(parameters)
    if to == "torch" and not handle.skipped:
        assert not any("normkit" in type(m).__module__ for m in model.modules())
    copy.deepcopy(model).train()(x) if d != "0d" else None
    model.train()
    handle.undo()
    if name != "frozen":  # whose mode was asked for again
        assert snapshot(model) == before
    assert same_states(model.state_dict(), state)
    assert same_states({"": model.eval()(x)}, {"": expected})


AROUND: dict[str, Callable[[nn.Module], nn.Module]] = {
    "nothing": lambda m: m,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled": lambda m: torch.compile(m, backend="eager"),  # type: ignore[dict-item, return-value]
    "parallel": nn.DataParallel,
    "half": lambda m: m.bfloat16(),
}


# Compiling takes seconds.
WRAPPED = few(
    itertools.product(AROUND, TO), lambda around, to: around != "compiled" or to == "group"
)


@pytest.mark.filterwarnings("ignore:convert changed nothing")
@pytest.mark.parametrize(("around", "to"), WRAPPED)
def test_wrapped_and_shared(around: str, to: Any) -> None:
    shared = source("ours", "2d")
    inner = nn.Sequential(nn.Conv2d(3, C, 3), shared, nn.Conv2d(C, C, 1), shared, nn.ReLU())
    model = AROUND[around](inner)
    dtype = next(model.parameters()).dtype
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    before, state = snapshot(model), copy.deepcopy(model.state_dict())
    expected = model.eval()(x)
    handle = nk.convert(model, to)
    assert len(handle.changed) == (to != "batch")
    y = model(x)
    if "train the network again" not in repr(handle):
        tolerance = 0.05 if around == "half" else 1e-5
        torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    handle.undo()
    model.train()
    assert snapshot(model) == before and same_states(model.state_dict(), state)
    torch.testing.assert_close(model.eval()(x), expected, rtol=0, atol=0)


class Parametrized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Theirs(nk.BatchNorm2d):
    pass


@pytest.mark.filterwarnings("ignore:convert changed nothing")
@pytest.mark.parametrize("to", TO, ids=str)
def test_odd_layers_are_left_by_name(to: Any) -> None:
    patched, computed = nk.BatchNorm2d(C), nk.BatchNorm2d(C)
    patched.forward = lambda x: x  # type: ignore[method-assign, assignment]
    parametrize.register_parametrization(computed, "weight", Parametrized())
    model = nn.ModuleDict({
        "patched": patched, "computed": computed, "theirs": Theirs(C),
        "scripted": torch.jit.script(nn.BatchNorm2d(C)), "lazy": nn.LazyBatchNorm2d(),
        "several": nk.DomainBatchNorm2d(C, 3),
    })  # fmt: skip
    before = snapshot(model)
    handle = nk.convert(model, to)
    names = {row.name for row in handle.skipped}
    # To "batch" the patched one is of that class already.
    expected = {"computed", "theirs", "several"} | ({"patched"} if to != "batch" else set())
    assert names == expected | (set() if to == "torch" else {"scripted", "lazy"})
    assert not handle.changed and all(row.why for row in handle.skipped)
    assert snapshot(model) == before
