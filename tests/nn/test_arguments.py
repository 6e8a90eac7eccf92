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
from tests.nn.every_layer import EVERY, Sample

WRONG: dict[str, Any] = {
    "a string": "0.1", "a word": "relu6", "nan": math.nan, "inf": math.inf, "-1": -1, "-0.5": -0.5,
    "1.5": 1.5, "0": 0, "1": 1, "0.0": 0.0, "true": True, "false": False, "none": None,
    "a module": nn.ReLU(), "a norm": nn.BatchNorm2d(4), "a class": nn.ReLU6, "a list": [4],
    "two": (4, 5), "a mapping": {}, "a tensor": torch.ones(4), "a scalar": torch.tensor(0.5),
    "a learned scalar": nn.Parameter(torch.tensor(0.5)), "an integer tensor": torch.tensor(4),
    "a type": torch.int64, "complex": torch.complex64, "numpy": np.float64(0.25),
    "numpy's integer": np.int64(4), "numpy's bool": np.bool_(True), "an object": object(),
}  # fmt: skip
# Not the layer's to judge: PyTorch's error for a device that is not there.
DEVICES = {"a string", "a word", "-1", "0", "1"}

CASES = [
    pytest.param(name, argument, id=f"{name}-{argument}")
    for name, sample in EVERY.items()
    for argument in inspect.signature(sample.cls).parameters
]


def _same_as_torch(sample: Sample, layer: Any, argument: str, value: Any) -> bool:
    """Whether the namesake takes the argument too, and computes and keeps the same with it."""
    known = sample.namesake and argument in inspect.signature(sample.namesake).parameters
    if not known:
        return False
    if argument == "eps" and isinstance(value, int | float) and value < 0:
        return False  # PyTorch's other layers return NaN
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
    if argument in ("affine", "bias", "track_running_stats", "share_affine", "elementwise_affine"):
        return value is None or isinstance(value, bool | np.bool_) or value in (0, 1)
    if argument in ("eps", "momentum", "r_max", "d_max"):
        if value is None:
            return argument == "momentum"
        low = 1 if argument == "r_max" else 0
        if argument == "eps" and float(value) < 0:
            return _refused_in_forward(sample, value)
        high = 1 if argument == "momentum" else math.inf
        return not isinstance(value, bool) and low <= float(value) <= high
    if argument in ("device", "dtype", "process_group", "average"):
        return value is None or (argument == "device" and type(value) is int)
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
