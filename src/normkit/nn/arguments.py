"""Validate the arguments of layers where they are assigned, in the constructor and later.

PyTorch takes most of them as they come, and a wrong one shows in another place or never: a bias
that is a string is a bias, ``GroupNorm(2, 4, False)`` has an ε of 0, a momentum of 1.5 ends in a
negative variance. The usual forms that PyTorch computes with as intended, such as NumPy's numbers
and tensors without axes, are taken here too and stored as the plain number they stand for.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from normkit.errors import NormkitError, OptionError, ShapeError, TypeMismatchError, message

__all__ = [
    "ATTRIBUTES",
    "CHANNELS",
    "CHANNEL_COUNT",
    "Check",
    "at_least",
    "check_options",
    "number",
    "optional_eps",
    "shape",
    "unused_size",
]

# Returns the value to store for (class name, argument name, value passed).
Check = Callable[[str, str, Any], Any]


def number(layer: str, name: str, value: Any, rule: str, fix: str) -> float | int:
    """Return a real number that is none of PyTorch's symbols as int or float."""
    if isinstance(value, Tensor) and value.dim() == 0 and not value.requires_grad:
        value = value.item()
    if type(value) is int or type(value) is float:
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise TypeMismatchError(message(f"{name} of {layer} as {rule}", f"{name}={value!r}", fix))


def _eps(layer: str, name: str, value: Any) -> Any:
    fix = "use 1e-5, PyTorch's default"
    eps = number(layer, name, value, "a number", fix)
    # One below 0 is refused by the forward pass, as in torch.nn, whose own tests construct it.
    if not math.isfinite(eps):
        raise OptionError(message(f"{name} of {layer} as a finite number", f"{name}={eps}", fix))
    return eps


def optional_eps(layer: str, name: str, value: Any) -> Any:
    """Validate ε where None stands for the machine epsilon."""
    return None if value is None else _eps(layer, name, value)


def _momentum(layer: str, name: str, value: Any) -> Any:
    if value is None:
        return None
    rule = "a number from 0 to 1, the share replaced by each batch, or None"
    fix = "use 0.1, PyTorch's default; a share kept of 0.9, as other libraries count, is 0.1 here"
    # False is none; True is more likely an argument in another's place than a share of 1.
    momentum = 0.0 if value is False else number(layer, name, value, rule, fix)
    if not 0 <= momentum <= 1:
        raise OptionError(message(f"{name} of {layer} as {rule}", f"{name}={value!r}", fix))
    return momentum


def flag(layer: str, name: str, value: Any) -> bool:
    """Validate a switch: a bool, 0, 1, or None for False."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if not isinstance(value, Tensor) and isinstance(value, numbers.Real) and value in (0, 1):
        return bool(value)
    if type(value).__name__ in ("bool_", "bool"):  # NumPy's
        return bool(value)
    if isinstance(value, Tensor) and value.dtype == torch.bool and value.numel() == 1:
        return bool(value)
    what = f"a {type(value).__name__}" if isinstance(value, Tensor) else repr(value)
    raise TypeMismatchError(
        message(
            f"{name} of {layer} as True or False",
            f"{name}={what}",
            "pass a bool; tensors are loaded with load_state_dict or copied into the parameter",
        )
    )


def _size(
    layer: str,
    name: str,
    value: Any,
    rule: str,
    fix: str,
    error: type[NormkitError] = TypeMismatchError,
) -> Any:
    if isinstance(value, torch.SymInt):
        return value
    try:
        # NumPy's bool too, which before NumPy 2.3 is an index.
        truth = str(getattr(value, "dtype", "")).endswith("bool")
        if truth or isinstance(value, (bool, str)):
            raise TypeError
        # PyTorch takes a size in brackets too.
        one = value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
        return operator.index(one)
    except (TypeError, RuntimeError, ValueError):
        text = message(f"{name} of {layer} as {rule}", f"{name}={value!r}", fix)
        raise error(text) from None


def at_least(
    least: int, fix: str, error: type[NormkitError] = OptionError, meaning: str = ""
) -> Check:
    """Return a check for an integer of at least ``least``; ``meaning`` says what it counts."""
    rule = f"{meaning}an integer of at least {least}"
    # Sizes raise what torch.nn raises in either case.
    wrong_type = TypeMismatchError if error is ShapeError else error

    def check(layer: str, name: str, value: Any) -> Any:
        size = _size(layer, name, value, rule, fix, wrong_type)
        if not isinstance(size, torch.SymInt) and size < least:
            raise error(message(f"{name} of {layer} as {rule}", f"{name}={value!r}", fix))
        return size

    return check


def shape(layer: str, name: str, value: Any) -> tuple[int, ...]:
    """Validate sizes of the last axes, or the size of the last one."""
    rule = "a size of at least 0, or a sequence of such sizes"
    fix = "pass x.shape[-1], or x.shape[-k:] for k axes"
    if isinstance(value, Tensor) and value.dim() == 1:
        value = value.tolist()
    try:
        sizes = (value,) if isinstance(value, (str, bytes)) else tuple(value)
    except TypeError:  # one size
        sizes = (value,)
    checked = tuple(_size(layer, name, size, rule, fix) for size in sizes)
    if any(not isinstance(size, torch.SymInt) and size < 0 for size in checked):
        raise ShapeError(message(f"{name} of {layer} as {rule}", f"{name}={value!r}", fix))
    return checked


CHANNELS: Final = "pass the number of channels C"
CHANNEL_COUNT: Final = at_least(0, CHANNELS, ShapeError)


def unused_size(layer: str, name: str, value: Any) -> Any:
    """Validate the number of channels of a layer without tensors, which may be None."""
    return None if value is None else CHANNEL_COUNT(layer, name, value)


ATTRIBUTES: Final[dict[str, Check]] = {
    "eps": _eps,
    "momentum": _momentum,
    "num_features": CHANNEL_COUNT,
    "affine": flag,
    "elementwise_affine": flag,
    "share_affine": flag,
    "track_running_stats": flag,
}
"""Checks of what all layers name alike; a layer's class adds its own."""


def check_options(module: object, device: Any, dtype: Any, bias: Any = True) -> None:
    """Validate what constructors take and layers do not keep: device, type, and bias or not."""
    layer = type(module).__name__
    flag(layer, "bias", bias)
    if device is not None and (
        isinstance(device, bool) or not isinstance(device, (int, str, torch.device))
    ):
        raise TypeMismatchError(
            message(f"device of {layer} as a torch.device, its name or None", f"device={device!r}",
                    "pass arguments after the first by name")
        )  # fmt: skip
    wide = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    if dtype is not None and dtype is not float and not wide:  # float stands for float64
        raise TypeMismatchError(
            message(f"dtype of {layer} as a floating-point torch.dtype or None", f"dtype={dtype!r}",
                    "use torch.float32; inputs of integers are converted with x.float()")
        )  # fmt: skip
