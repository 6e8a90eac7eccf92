"""``torch.jit.script``: the namesakes are compiled as torch.nn's, and stay what they are."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.nn.namesakes import as_namesake, namesake
from tests.nn.every_layer import EVERY

NAMESAKES = [
    name for name, sample in EVERY.items()
    if sample.stands_for_it and not name.startswith("Lazy")
]  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "BatchNorm1d": {"affine": False}, "BatchNorm2d": {"momentum": None},
    "BatchNorm3d": {"track_running_stats": False},
    "InstanceNorm1d": {"affine": True, "track_running_stats": True}, "RMSNorm": {"eps": 1e-5},
}  # fmt: skip


def frozen(layer: nn.Module) -> nn.Module:
    nk.freeze(layer)
    return layer


def accelerated(model: nn.Module) -> nn.Module:
    nk.accelerate(model)
    return model


def test_all_namesakes_are_tested() -> None:
    assert len(NAMESAKES) == 9


@pytest.mark.parametrize("name", NAMESAKES)
def test_compiled_as_torchs_layer(name: str) -> None:
    sample = EVERY[name]
    for options in ({}, OPTIONS.get(name, {})):
        layer = sample.make(**options)
        model, cls = nn.Sequential(nn.Identity(), layer), type(layer)
        scripted = torch.jit.script(model)
        assert model[1] is layer and type(layer) is cls
        twin = sample.namesake(**sample.needs, **options)
        twin.load_state_dict(layer.state_dict())
        assert scripted.code == torch.jit.script(nn.Sequential(nn.Identity(), twin)).code
        x = torch.randn(sample.shape) + 1
        for training in (True, False):
            twin.train(training)
            torch.testing.assert_close(scripted.train(training)(x), twin(x), rtol=0, atol=0)
        # The compiled module has the layer's own tensors.
        torch.testing.assert_close(layer.state_dict(), twin.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(layer.eval()(x), twin(x))
        assert type(layer) is cls


@pytest.mark.parametrize("name", ["BatchNorm2d", "LayerNorm"])
def test_compiled_by_itself(name: str) -> None:
    layer, x = EVERY[name].make(), torch.randn(EVERY[name].shape)
    scripted = torch.jit.script(layer.eval())
    torch.testing.assert_close(scripted(x), layer(x))


class Block(nn.Module):
    """A layer in a block that uses it twice, as some networks do."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.again = nn.Conv2d(3, 3, 1), norm, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.again(torch.relu(self.norm(self.conv(x))))


@pytest.mark.parametrize("make", [
    lambda: nk.BatchNorm2d(3), lambda: nk.GroupNorm(1, 3), lambda: nk.InstanceNorm2d(3),
    lambda: nk.LayerNorm(4), lambda: nk.RMSNorm(4), lambda: frozen(nk.BatchNorm2d(3)),
    lambda: accelerated(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())),
])  # fmt: skip
def test_shared_layer(make: Callable[[], nn.Module]) -> None:
    block = Block(make()).eval()
    x, cls = torch.randn(2, 3, 4, 4), type(block.norm)
    scripted = torch.jit.script(block)
    torch.testing.assert_close(scripted(x), block(x))
    assert type(block.norm) is cls and block.norm is block.again


@pytest.mark.parametrize(
    "make", [lambda: frozen(nk.BatchNorm2d(3)), lambda: frozen(nn.BatchNorm2d(3))]
)
def test_frozen_layer(make: Callable[[], nn.Module]) -> None:
    layer, x = make(), torch.randn(2, 3, 4, 4)
    cls = type(layer)
    scripted = torch.jit.script(nn.Sequential(layer))
    torch.testing.assert_close(scripted(x), layer(x))
    assert type(layer) is cls


def test_accelerated_model() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), nn.GroupNorm(2, 4)
    )
    x = torch.randn(2, 3, 4, 4)
    handle = nk.accelerate(model.eval())
    before = [type(module) for module in model.modules()]
    scripted, expected = torch.jit.script(model), model(x)
    torch.testing.assert_close(scripted(x), expected)
    assert [type(module) for module in model.modules()] == before
    handle.undo()
    assert scripted.code == torch.jit.script(model).code


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "act": (lambda: nk.BatchNorm2d(3, act="relu"), r"BatchNorm2d with act='relu'"),
    "average": (lambda: nk.BatchNorm2d(3, average="debiased"), r"with average='debiased'"),
    "ghosts": (lambda: nk.GhostBatchNorm2d(3, 2), r"GhostBatchNorm2d, which torch.nn lacks"),
    "pixels": (lambda: nk.LayerNorm2d(3), r"LayerNorm2d, which torch.nn lacks"),
    "processes": (lambda: nk.SyncBatchNorm(3), r"SyncBatchNorm, which torch.nn lacks"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_in_a_sentence(name: str) -> None:
    make, received = REFUSED[name]
    first, layer = nk.GroupNorm(1, 3), make()
    model = nn.Sequential(first, layer)
    with pytest.raises(nk.TypeMismatchError, match=received) as raised:
        torch.jit.script(model)
    assert len(str(raised.value)) < 400 and "call torch.jit.trace" in str(raised.value)
    assert model[1] is layer and type(first) is nk.GroupNorm


class Beyond(nn.Module):
    """A module that TorchScript cannot compile, after one that it can."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nk.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * len({str(x): globals()})


def test_failing_script_leaves_layers_usable() -> None:
    x = torch.randn(2, 3)
    for use in (lambda m: m(x), copy.deepcopy, pickle.dumps, torch.jit.script):
        model = Beyond()
        with pytest.raises(Exception):  # noqa: B017  # any of TorchScript's
            torch.jit.script(model)
        use(model.norm)
        assert type(model.norm) is nk.LayerNorm
        torch.testing.assert_close(model.norm(x), nn.LayerNorm(3)(x))


def test_namesakes() -> None:
    for name, sample in EVERY.items():
        expected = sample.namesake if sample.stands_for_it else None
        assert namesake(sample.cls) is expected, name
    layer = frozen(nk.BatchNorm2d(3))
    other = as_namesake(layer)
    assert type(other) is nn.BatchNorm2d and not other.training
    assert other.running_var is layer.running_var and other.weight is layer.weight
    assert vars(other).keys() == vars(nn.BatchNorm2d(3)).keys()
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(other(x), layer(x))
    assert namesake(type("BatchNorm2d", (nk.BatchNorm2d,), {"__module__": "models"})) is None
