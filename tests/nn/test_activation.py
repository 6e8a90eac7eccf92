"""``act=`` on every layer: a module, class or function is applied, or refused; never ignored."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from tests.nn.every_layer import EVERY, Sample

KNOWN: dict[str, tuple[Any, Any, Callable[[Tensor], Tensor]]] = {
    "relu": (nn.ReLU(), "relu", F.relu),
    "relu in place": (nn.ReLU(inplace=True), "relu", F.relu),
    "relu6": (nn.ReLU6(inplace=True), "relu6", F.relu6),
    "silu": (nn.SiLU(inplace=True), "silu", F.silu),
    "gelu": (nn.GELU(approximate="none"), "gelu", F.gelu),
    "leaky": (nn.LeakyReLU(0.3), ("leaky_relu", 0.3), lambda z: F.leaky_relu(z, 0.3)),
    "identity": (nn.Identity(), None, lambda z: z),
    "a class": (nn.LeakyReLU, ("leaky_relu", 0.01), F.leaky_relu),
    "no class": (nn.Identity, None, lambda z: z),
    "torch.relu": (torch.relu, "relu", F.relu),
    "F.relu6": (F.relu6, "relu6", F.relu6),
    "F.gelu": (F.gelu, "gelu", F.gelu),
    "F.leaky_relu": (F.leaky_relu, ("leaky_relu", 0.01), F.leaky_relu),
    "a list": (["leaky_relu", 0.3], ("leaky_relu", 0.3), lambda z: F.leaky_relu(z, 0.3)),
}


class _Doubled(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def _hooked() -> nn.Module:
    act = nn.ReLU()
    act.register_forward_hook(lambda *_: None)
    return act


def _patched() -> nn.Module:
    act = nn.ReLU()
    act.forward = lambda z: z  # type: ignore[method-assign, assignment]
    return act


def _slope(value: Any) -> nn.Module:
    act = nn.LeakyReLU()
    act.negative_slope = value
    return act


def _cut_elsewhere() -> nn.Module:
    act = nn.ReLU6()
    act.max_val = 5.0
    return act


UNKNOWN: dict[str, Any] = {
    "subclass": _Doubled(), "its class": _Doubled, "tanh": nn.GELU(approximate="tanh"),
    "hooked": _hooked(), "patched": _patched(), "parameters": nn.PReLU(), "random": nn.RReLU(),
    "sequential": nn.Sequential(nn.ReLU()), "relu6 of another limit": _cut_elsewhere(),
    "hardtanh": nn.Hardtanh(0.0, 6.0), "hardswish": nn.Hardswish(), "its name": "hardswish",
    "a slope of many": _slope(torch.ones(3)), "nan": _slope(float("nan")),
    "partial": functools.partial(F.leaky_relu, negative_slope=0.2), "lambda": lambda z: z,
    "tuple of a module": (nn.ReLU(),), "a parameter": nn.Parameter(torch.ones(1)),
    "a bool": True, "slope as a bool": ("leaky_relu", True),
}  # fmt: skip


def _assigned(sample: Sample, act: Any) -> Any:
    layer = sample.make()
    layer.act = act
    return layer


def _replaced(sample: Sample, act: Any) -> Any:
    layer = sample.make(act="silu")
    setattr(layer, "act", act)  # noqa: B010
    return layer


def _pickled(sample: Sample, act: Any) -> Any:
    file = io.BytesIO()
    torch.save(sample.make(act=act), file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Sample, Any], Any]] = {
    "constructor": lambda sample, act: sample.make(act=act),
    "assigned": _assigned,
    "replaced": _replaced,
    "copied": lambda sample, act: copy.deepcopy(sample.make(act=act)),
    "pickled": _pickled,
}


@pytest.mark.parametrize("name", EVERY)
def test_a_known_one_is_applied(name: str) -> None:
    sample = EVERY[name]
    x = torch.randn(sample.shape)
    for act, option, function in KNOWN.values():
        expected = function(sample.make()(x))
        for way, make in WAYS.items():
            if way == "copied" and "Lazy" in name:
                continue  # PyTorch copies no uninitialized parameter
            layer = make(sample, act)
            assert layer.act == option, (act, way)
            torch.testing.assert_close(layer(x), expected, msg=f"{act} {way}")
            assert not layer._modules and "(act)" not in repr(layer)
            assert (option is None) == ("act=" not in repr(layer)), repr(layer)
            assert layer.state_dict().keys() == sample.make().state_dict().keys() or "Lazy" in name


@pytest.mark.parametrize("name", EVERY)
def test_another_is_refused(name: str) -> None:
    sample = EVERY[name]
    compiled = torch.compile(nn.ReLU())  # here, as it imports the compiler, which takes seconds
    for what, act in [*UNKNOWN.items(), ("compiled", compiled)]:
        for make in (WAYS["constructor"], WAYS["replaced"]):
            with pytest.raises(nk.OptionError, match=r"Expected act .*; received act=.* Fix: "):
                make(sample, act)
        layer = sample.make(act="gelu")
        with pytest.raises(nk.OptionError):
            layer.act = act
        assert layer.act == "gelu" and not layer._modules, what
    with pytest.raises(KeyError, match="act"):
        sample.make().add_module("act", nn.ReLU())


def test_a_pickle_of_a_version_that_registered_it_and_never_applied_it_is_named() -> None:
    layer = nk.BatchNorm2d(4)
    layer._modules["act"] = nn.ReLU()
    with pytest.warns(UserWarning, match=r"received a pickle in which ReLU\(\) .* never applied"):
        loaded = pickle.loads(pickle.dumps(layer))
    assert not loaded._modules and loaded.act is None
    x = torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(loaded(x), nk.BatchNorm2d(4)(x))


def test_a_module_that_changes_later_does_not_part_what_is_shown_from_what_is_computed() -> None:
    act = nn.LeakyReLU(0.1)
    layer = nk.BatchNorm2d(4, act=act)
    act.negative_slope = 0.5
    x = torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(layer(x), F.leaky_relu(nk.BatchNorm2d(4)(x), 0.1))
    assert "0.1" in repr(layer)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.2)], ids=repr)
def test_tools_keep_it(act: nn.Module) -> None:
    def model() -> Any:
        return nn.Sequential(nk.BatchNorm2d(4, act=copy.deepcopy(act)))

    x = torch.randn(5, 4, 3, 3)
    expected = act(nk.BatchNorm2d(4)(x))
    for kind in ("batch", ("ghost", 8), ("domain", 1), "renorm", "sync"):
        converted = model()
        nk.convert(converted, kind)
        torch.testing.assert_close(converted(x), expected)
    accelerated = model()
    nk.accelerate(accelerated)
    torch.testing.assert_close(accelerated(x), expected)
    sync = nk.SyncBatchNorm.convert_sync_batchnorm(model())
    torch.testing.assert_close(sync(x), expected)
    trained = model()
    trained(x)
    frozen = nk.FrozenBatchNorm2d.from_batch_norm(trained[0])
    torch.testing.assert_close(frozen(x), trained.eval()(x))
    assert frozen.act == trained[0].act
