"""Layers that a model's own train() keeps in evaluation mode are left, in every mode."""

from __future__ import annotations

import functools
import threading
import types
import warnings
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

import normkit as nk
from normkit.statistics.layers.train_overrides import KEPT, kept_in_evaluation
from tests.surgery.models import Positive

X = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1


class Backbone(nn.Module):
    """As detection libraries have it: some stages frozen, batch norms in evaluation mode."""

    def __init__(self, norm_eval: bool = True) -> None:
        super().__init__()
        self.norm_eval = norm_eval
        self.calls: list[bool] = []
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.late = nn.Sequential(nn.Conv2d(3, 3, 1), nk.BatchNorm2d(3), nn.Dropout())

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.calls.append(mode)
        for p in self.stem.parameters():
            p.requires_grad = False
        self.stem[0].weight.data.mul_(1.5)  # as those that merge weights
        for module in self.modules():
            if mode and self.norm_eval and isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.stem(x))


def detector(norm_eval: bool = True) -> nn.Sequential:
    return nn.Sequential(Backbone(norm_eval), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


def everything(model: nn.Module) -> list[Any]:
    parts: list[Any] = [
        (n, id(p), p.requires_grad, p._version) for n, p in model.named_parameters()
    ]
    return [*parts, *((n, m.training, type(m), repr(vars(m))) for n, m in model.named_modules())]


@pytest.mark.parametrize("mode", ["new", "train", "eval"])
def test_kept_layers_are_left_in_every_mode(mode: str) -> None:
    model = detector()
    if mode != "new":
        model.train(mode == "train")
    before = everything(model)
    kept = kept_in_evaluation(model)
    assert everything(model) == before
    assert [n for n, m in model.named_modules() if id(m) in kept] == ["0.stem.1", "0.late.1"]
    for tool in (nk.recalibrate, nk.consistency):
        result = tool(model, [X], progress=False)
        assert list(result.layers) == ["2"]
        assert {row.name: row.why for row in result.skipped} == {"0.stem.1": KEPT, "0.late.1": KEPT}
    handle = nk.scale_momentum(model, 4)
    assert [row.name for row in handle.changed] == ["2"]
    assert [row.why for row in handle.skipped] == [KEPT, KEPT]
    with nk.batch_statistics(model):
        layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        assert [m.training for m in layers] == [False, False, True]


def test_what_train_decides_is_asked_anew() -> None:
    model = detector()
    assert kept_in_evaluation(model)
    model[0].norm_eval = False
    assert not kept_in_evaluation(model)
    assert len(nk.recalibrate(model, [X], progress=False).layers) == 3
    assert not kept_in_evaluation(nn.Sequential(nn.BatchNorm2d(3).eval()))


def test_unfreeze_says_that_train_keeps_a_layer() -> None:
    model = detector()
    nk.freeze(model, affine=False)
    assert not kept_in_evaluation(nn.ModuleList([model[2]]))
    rows = {row.name: row.note for row in nk.unfreeze(model, affine=False).changed}
    assert rows == {"0.stem.1": KEPT, "0.late.1": KEPT, "2": "statistics updating"}


def test_a_train_that_does_nothing() -> None:
    # As generative models hold what they condition on.
    teacher = nn.Sequential(nn.BatchNorm2d(3)).eval()
    teacher.train = lambda mode=True: teacher  # type: ignore[method-assign]
    model = nn.ModuleDict({"teacher": teacher, "student": nn.BatchNorm2d(3)})
    assert kept_in_evaluation(model) == {id(teacher), id(teacher[0])}


class Hidden(nn.Module):
    """Reaches its layers by plain attributes and bound methods."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = [self.norm, (self.norm,)]
        self.hold = self._hold

    def _hold(self) -> None:
        for layer in (self.frozen[0], *self.frozen[1]):
            layer.eval()

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.hold()
        return self


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def train(self, mode: bool = True) -> Any:
        raise NotImplementedError


def test_odd_train_methods() -> None:
    model = Hidden()
    assert kept_in_evaluation(model) == {id(model.norm)} and model.norm.training
    assert kept_in_evaluation(Fails()) == frozenset()


def test_odd_modules_beside_an_overridden_train() -> None:
    parametrized = nn.BatchNorm2d(3)
    parametrize.register_parametrization(parametrized, "weight", Positive())
    model = nn.ModuleList([
        detector(), parametrized, nn.LazyBatchNorm2d(), torch.jit.script(nn.BatchNorm2d(3)),
        fx.symbolic_trace(nn.Sequential(nn.BatchNorm2d(3))),
    ])  # fmt: skip
    graph, modes = model[4].code, [m.training for m in model.modules()]
    assert len(kept_in_evaluation(model)) == 2
    assert model[4].code == graph and [m.training for m in model.modules()] == modes


class ByValue(nn.Module):
    """Asks a tensor for its value, which a tensor without values cannot tell."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("frozen", torch.tensor(True))

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if bool(self.frozen):
            self.norm.eval()
            self.norm.running_mean.add_(1)
        return self


class Compiled(nn.Module):
    """Has the mode of the module inside it, as torch.compile's does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def _mode(self) -> bool:
        return self.inner.training

    def _set_mode(self, mode: bool) -> None:
        if "inner" in vars(self).get("_modules", {}):  # else within the constructor
            self.inner.training = mode

    training = property(_mode, _set_mode)  # type: ignore[assignment]


def test_a_module_without_a_mode_of_its_own() -> None:
    class Backbone(nn.Sequential):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self[0].eval()
            return self

    model = Compiled(Backbone(nn.BatchNorm1d(2), nn.BatchNorm1d(2)))
    attributes = {*vars(model)}
    assert kept_in_evaluation(model) == {id(model.inner[0])}  # type: ignore[index]
    assert {*vars(model)} == attributes and model.training


def test_a_train_that_depends_on_values() -> None:
    model = ByValue()
    before = everything(model)
    assert kept_in_evaluation(model) == {id(model.norm)} and everything(model) == before
    model.frozen.fill_(False)
    assert not kept_in_evaluation(model)


def patched(model: nn.Module, kind: str) -> nn.Module:
    """Set a function in place of ``train`` that refers to the model itself."""
    norm, usual = model[0], model.train  # type: ignore[index]

    def closure(mode: bool = True) -> Any:
        usual(mode)
        norm.eval()
        return model

    def function(model: Any, mode: bool = True) -> Any:
        nn.Module.train(model, mode)
        model[0].eval()
        return model

    model.train = {  # type: ignore[method-assign]
        "closure": closure,
        "partial": functools.partial(function, model),
        "method": MethodType(function, model),
    }[kind]
    return model


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("mode", ["new", "train", "eval"])
@pytest.mark.parametrize("kind", ["closure", "partial", "method"])
@pytest.mark.parametrize("source", [nn, nk])
def test_train_replaced_on_the_instance(source: Any, kind: str, mode: str, within: bool) -> None:
    inner = nn.Sequential(source.BatchNorm2d(3), nn.Conv2d(3, 3, 1), source.BatchNorm2d(3))
    nk.freeze(extra := nn.Sequential(source.BatchNorm2d(3)), affine=False)
    inner.append(extra)
    model = nn.Sequential(patched(inner, kind)) if within else patched(inner, kind)
    if mode != "new":
        model.train(mode == "train")
    modes = [
        (m.training, type(m.training), vars(m).get("_requested_mode")) for m in model.modules()
    ]
    assert kept_in_evaluation(model) == {id(inner[0])}
    assert modes == [
        (m.training, type(m.training), vars(m).get("_requested_mode")) for m in model.modules()
    ]
    names = list(nk.recalibrate(model, [X], progress=False).layers)
    assert names == ["0.2" if within else "2"]


class Box:
    """Holds weights, as those of a moving average."""

    saved: dict[str, Tensor] | None = None


class Swaps(nn.Sequential):
    """Swaps weights in for evaluation, and back for training."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for box in self.__dict__.get("boxes", {}).values():
            if not mode and box.saved is None:
                box.saved = {key: value.clone() for key, value in self.state_dict().items()}
            elif mode and box.saved is not None:
                self.load_state_dict(box.saved)
                box.saved = None
                self[0].eval()
        return self


@pytest.mark.parametrize("tool", [nk.recalibrate, nk.consistency])
def test_state_in_other_objects_is_left(tool: Any) -> None:
    model = Swaps(nn.BatchNorm2d(3), nk.BatchNorm2d(3))
    model.boxes = {"ema": Box()}
    model.eval()
    saved = model.boxes["ema"].saved
    before = {key: value.clone() for key, value in saved.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(tool(model, [X], progress=False).layers) == ["1"]
    assert model.boxes["ema"].saved is saved
    assert all(torch.equal(before[key], value) for key, value in saved.items())


class Holds(nn.Module):
    """Has an object without a copy, and asks it in ``train()`` or not."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.norm, self.asks = nn.BatchNorm2d(3), asks
        self.lock = threading.Lock()
        self.config = types.SimpleNamespace(norm_eval=True)
        self.calls: list[Any] = [self.lock]

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if self.config.norm_eval:
            self.norm.eval()
        try:
            if self.asks:
                self.lock.acquire(blocking=False)
        except Exception:
            pass
        return self


def test_objects_without_a_copy_are_left() -> None:
    assert kept_in_evaluation(model := Holds(asks=False)) == {id(model.norm)}
    assert kept_in_evaluation(model := Holds(asks=True)) == frozenset()
    assert not model.lock.locked() and model.norm.training
