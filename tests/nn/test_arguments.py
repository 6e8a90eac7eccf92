"""Any argument of any layer, wrong in any way: as ``torch.nn`` takes it, or refused at once."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import normkit as nk
from tests.few import few
from tests.nn.every_layer import EVERY, Sample
from tests.releases import REFUSES_ZERO_EPS

WRONG: dict[str, Any] = {
    "a string": "0.1", "a word": "hardswish", "nan": math.nan, "inf": math.inf, "-1": -1,
    "-0.5": -0.5, "1.5": 1.5, "0": 0, "1": 1, "0.0": 0.0, "true": True, "false": False,
    "none": None, "a module": nn.ReLU(), "a norm": nn.BatchNorm2d(4), "a class": nn.Hardswish,
    "a list": [4], "two": (4, 5), "a mapping": {}, "a tensor": torch.ones(4),
    "a scalar": torch.tensor(0.5), "a learned scalar": nn.Parameter(torch.tensor(0.5)),
    "an integer tensor": torch.tensor(4), "a type": torch.int64, "complex": torch.complex64,
    "numpy": np.float64(0.25), "numpy's integer": np.int64(4), "numpy's bool": np.bool_(True),
    "an object": object(), "a float type": float, "an integer type": int,
    "a tensor's bool": torch.tensor(True), "an array": np.array([5]), "a range": range(5, 6),
    "sizes": np.array([3, 5]), "bytes": b"a",
}  # fmt: skip
# Not the layer's to judge: PyTorch's error for a device that is not there.
DEVICES = {"a string", "a word", "-1", "0", "1"}

CASES = few(
    (
        (name, argument)
        for name, sample in EVERY.items()
        for argument in inspect.signature(sample.cls).parameters
    ),
    lambda name, _: name[-2:] not in ("1d", "3d"),
)


def _same_as_torch(sample: Sample, layer: Any, argument: str, value: Any) -> bool:
    """Whether the namesake takes the argument too, and computes and keeps the same with it."""
    known = sample.namesake and argument in inspect.signature(sample.namesake).parameters
    if not known:
        return False
    if argument == "eps" and isinstance(value, int | float) and value < 0:
        return False  # PyTorch's other layers return NaN
    if argument == "eps" and REFUSES_ZERO_EPS and type(value) in (int, float) and value == 0:
        return False
    if argument == "dtype":
        return False  # PyTorch's layers take no input of another type
    try:
        other = sample.namesake(**{**sample.needs, argument: value})
    except (TypeError, RuntimeError):
        return False
    ours, theirs = [], []
    for training in (True, False):
        for module, found in ((layer, ours), (other, theirs)):
            torch.manual_seed(0)
            x = torch.randn(sample.shape)
            try:
                found.append(module.train(training)(x).detach())
            except Exception as error:
                found.append(type(error).__mro__)
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, tuple) or isinstance(b, tuple):
            assert isinstance(a, tuple) and isinstance(b, tuple), (a, b)
        else:
            torch.testing.assert_close(a, b)
    if not any(isinstance(y, tuple) for y in ours):
        torch.testing.assert_close(layer.state_dict(), other.state_dict())
    return True


def _refused_in_forward(sample: Sample, eps: float) -> bool:
    for training in (True, False):
        with pytest.raises(nk.OptionError, match="eps must be positive"):
            sample.make(eps=eps).train(training)(torch.randn(sample.shape))
    return True


def _means_something(sample: Sample, argument: str, value: Any) -> bool:
    """Whether a layer that torch.nn lacks, or an argument of ours, may take the value."""
    if argument == "act":
        return value is None or type(value) is nn.ReLU
    if argument in ("affine", "bias", "track_running_stats", "share_affine", "elementwise_affine",
                    "tlu", "learn_eps", "memory_efficient"):  # fmt: skip
        if isinstance(value, torch.Tensor):
            return value.dtype == torch.bool
        return value is None or isinstance(value, bool | np.bool_) or value in (0, 1)
    if argument in ("eps", "momentum", "r_max", "d_max"):
        if value is None:
            return argument == "momentum"
        low = 1 if argument == "r_max" else 0
        if argument == "eps" and float(value) < 0:
            return _refused_in_forward(sample, value)
        if argument == "momentum" and value is False:
            return True
        high = 1 if argument == "momentum" else math.inf
        return not isinstance(value, bool) and low <= float(value) <= high
    if argument in ("device", "dtype", "process_group", "average"):
        if argument == "dtype" and value is float:
            return True
        return value is None or (argument == "device" and type(value) is int)
    if argument == "normalized_shape":  # as torch.nn's layers over the last axes take it
        plain = value.tolist() if isinstance(value, torch.Tensor) else value
        taken = sample.make(**{argument: value}).normalized_shape
        return taken == tuple(nn.RMSNorm(plain).weight.shape)
    size = value[0] if isinstance(value, list) else value
    return type(value) is not bool and int(size) == size and size >= 0


@pytest.mark.parametrize(("name", "argument"), CASES)
@pytest.mark.filterwarnings("ignore:input's size at dim")
def test_any_value_of_an_argument(name: str, argument: str) -> None:
    sample = EVERY[name]
    for what, value in WRONG.items():
        options = {argument: copy.deepcopy(value)}
        try:
            layer = sample.make(**options)
        except nk.NormkitError as error:
            text = str(error)
            assert "; received " in text and "Fix: " in text and argument in text, (what, text)
            assert not _right_in_torch(sample, argument, value), f"{what}: torch takes it"
            continue
        except (RuntimeError, AssertionError):
            assert argument == "device" and what in DEVICES, what
            continue
        assert not any(isinstance(m, nn.ReLU | nn.BatchNorm2d) for m in layer._modules.values())
        assert _same_as_torch(sample, layer, argument, value) or _means_something(
            sample, argument, value
        ), f"{name}({argument}={value!r}) is taken: {layer}"


def _right_in_torch(sample: Sample, argument: str, value: Any) -> bool:
    """Whether ``torch.nn`` computes what the value plainly means."""
    plain = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    known = sample.namesake and argument in inspect.signature(sample.namesake).parameters
    if not (known and plain and argument in ("eps", "momentum", "num_channels")):
        return False
    if not 0 <= value <= 1:
        return False
    try:
        layer = sample.namesake(**{**sample.needs, argument: value})
        return bool(torch.isfinite(layer(torch.randn(sample.shape))).all())
    except Exception:
        return False


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_any_value_assigned_later(name: str, argument: str) -> None:
    """Assigned or refused as in the constructor, and nothing changes where it is refused."""
    sample = EVERY[name]
    layer = sample.make()
    if argument not in dir(layer) or argument in ("bias", "weight"):
        return
    for what, value in WRONG.items():
        before = getattr(layer, argument)
        try:
            built = sample.make(**{argument: value})
        except Exception as error:
            built = error
        if isinstance(built, Exception) and not isinstance(built, nk.NormkitError):
            continue  # a device that is not there
        if "divisible" in str(built):
            continue  # about two arguments together; an input's channels are checked by themselves
        if isinstance(built, nk.NormkitError):
            with pytest.raises(nk.NormkitError):
                setattr(layer, argument, value)
            assert getattr(layer, argument) == before, what
        else:
            setattr(layer, argument, value)
            assert getattr(layer, argument) == getattr(built, argument), what
            setattr(layer, argument, before)
    assert not layer._modules


@pytest.mark.parametrize("name", EVERY)
def test_positions_of_another_layer_are_refused(name: str) -> None:
    """GroupNorm's fourth argument is not LayerNorm's; a bool is no ε."""
    sample = EVERY[name]
    if "eps" in inspect.signature(sample.cls).parameters:
        with pytest.raises(nk.TypeMismatchError, match="eps"):
            sample.make(eps=False)
    if "device" in inspect.signature(sample.cls).parameters:
        with pytest.raises(nk.TypeMismatchError, match="device"):
            sample.make(device=False)


def test_a_device_is_no_process_group() -> None:
    with pytest.raises(nk.TypeMismatchError, match="process_group='cpu'"):
        nk.SyncBatchNorm(4, 1e-5, 0.1, True, True, "cpu")


def test_nothing_is_registered_past_a_property() -> None:
    layer = nk.nn.DomainBatchNorm2d(4, domains=2)
    for name in ("average", "domain", "act"):
        with pytest.raises(nk.OptionError):
            setattr(layer, name, nn.Sequential())
    assert not layer._modules


X = torch.randn(6, 4, 3, 5)
TAKEN: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "array of sizes": ("LayerNorm", (np.array([3, 5]),), {}),
    "range": ("LayerNorm", (range(5, 6),), {}),
    "tensor of sizes": ("LayerNorm", (torch.tensor([3, 5]),), {}),
    "torch.Size": ("RMSNorm", (X.shape[2:],), {}),
    "array of RMSNorm": ("RMSNorm", (np.array([3, 5]),), {}),
    "float": ("BatchNorm2d", (4,), {"dtype": float}),
    "float of GroupNorm": ("GroupNorm", (2, 4), {"dtype": float}),
    "affine in a tensor": ("BatchNorm2d", (4,), {"affine": torch.tensor(False)}),
    "tracking in a tensor": ("InstanceNorm2d", (4,), {"track_running_stats": torch.tensor(True)}),
    "momentum=False": ("BatchNorm2d", (4,), {"momentum": False}),
    "momentum=0": ("BatchNorm2d", (4,), {"momentum": 0}),
    "momentum=1": ("InstanceNorm2d", (4,), {"momentum": 1, "track_running_stats": True}),
    "no channels": ("InstanceNorm2d", (None,), {}),
    "no channels, batch": (
        "BatchNorm2d", (None,), {"affine": False, "track_running_stats": False}
    ),
    "no channels, sync": (
        "SyncBatchNorm", (None,), {"affine": False, "track_running_stats": False}
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TAKEN)
@pytest.mark.filterwarnings("ignore:input's size at dim=1")  # torch.nn's, also of None
def test_taken_as_in_torch(what: str) -> None:
    name, args, options = TAKEN[what]
    ours, theirs = getattr(nk, name)(*args, **options), getattr(nn, name)(*args, **options)
    x = X.double() if options.get("dtype") is float else X
    for training in (True, False):
        # torch.nn's SyncBatchNorm takes no CPU tensors.
        other = nn.functional.batch_norm if name == "SyncBatchNorm" else theirs.train(training)
        rest = (None, None, None, None, True) if name == "SyncBatchNorm" else ()
        torch.testing.assert_close(ours.train(training)(x), other(x, *rest))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    shown = repr(theirs)
    if not any(wrapped in shown for wrapped in ("np.", "tensor(", "momentum=False")):
        assert repr(ours) == shown


def test_sizes_of_a_generator() -> None:
    layer = nk.LayerNorm(size for size in (3, 5))
    assert layer.normalized_shape == (3, 5)
    assert layer(X).shape == X.shape


@pytest.mark.parametrize("options", [{"affine": True}, {"track_running_stats": True}], ids=str)
@pytest.mark.parametrize("name", ["InstanceNorm2d", "BatchNorm2d", "GhostBatchNorm2d"])
def test_tensors_need_a_number_of_channels(name: str, options: dict[str, Any]) -> None:
    options = {"affine": False, "track_running_stats": False, **options}
    with pytest.raises(nk.TypeMismatchError, match="num_features=None"):
        EVERY[name].make(**{"num_features": None, **options})


@pytest.mark.skipif(not nk.kernels.cpu.fused, reason="no extension")
@pytest.mark.parametrize("momentum", [0, 1])
def test_fused_call_takes_an_integer(momentum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nk.BatchNorm2d(4, momentum=momentum)
    monkeypatch.setattr(layer, "_check_input_dim", None)  # the slow path's first step
    layer(X)
    assert repr(layer) == repr(nn.BatchNorm2d(4, momentum=momentum))
