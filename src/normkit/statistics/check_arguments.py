"""Check the arguments that functions share: the model, its batches, numbers, functions."""

from __future__ import annotations

import contextlib
import inspect
import math
import operator
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from normkit.errors import OptionError, StatisticsError, TypeMismatchError, message
from normkit.statistics.printing.describe import SHOWN, describe, short, some

__all__ = [
    "check_batches",
    "check_function",
    "check_has_values",
    "check_model",
    "check_samples",
    "check_tolerance",
]


def check_model(model: object, verb: str | None = None, batches: object = None) -> None:
    """Raise unless ``model`` is a module written in Python.

    Args:
        model: the argument to check.
        verb: the function's name, for the message.
        batches: the argument after it, which is the model where the two are swapped.

    Raises:
        TypeMismatchError: it is not a module, or is scripted.
    """
    if isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        return
    expected = f"an nn.Module{f' for {verb}' if verb else ''}, not scripted"
    if isinstance(batches, nn.Module):
        expected, fix = f"{expected}, as the first argument", "swap the two: the model comes first"
    elif isinstance(model, torch.jit.ScriptModule):
        fix = "pass the model itself, before torch.jit.script"
    elif isinstance(model, type):
        fix = f"pass an instance of it, {model.__name__}(...)"
    elif isinstance(model, torch.optim.Optimizer):
        fix = "pass the model whose parameters it updates"
    elif isinstance(model, Mapping):
        fix = "load it with model.load_state_dict(...), and pass the model"
    elif isinstance(model, (str, bytes, PurePath)):
        fix = "build the model, load its state dict from the file, and pass the model"
    elif isinstance(model, (list, tuple, set)):
        fix = "call this once for each model, or put them into an nn.ModuleList"
    elif callable(model):
        fix = "call it, and pass the model that it returns"
    else:
        fix = "pass the model itself"
    raise TypeMismatchError(message(expected, describe(model), fix))


def check_has_values(model: nn.Module) -> None:
    """Raise if parameters or buffers of ``model`` are on the meta device, without values.

    Some libraries keep them there between calls, and hooks or replaced forwards bring their
    values for the time of a call: such a model passes.

    Raises:
        StatisticsError: some have no values.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if not empty or any(m._forward_pre_hooks or "forward" in vars(m) for m in model.modules()):
        return
    raise StatisticsError(
        message(
            "a model whose parameters and buffers have values",
            f"a {type(model).__name__} on the meta device: {some(empty)}",
            'call model.to_empty(device="cpu"), then load its state dict',
        )
    )


def check_batches(batches: object) -> None:
    """Raise unless ``batches`` is an iterable of batches.

    Raises:
        TypeMismatchError: it is a single batch, a mapping, a data set, a model, a class, a
            function, or not iterable.
    """
    fix = _not_batches(batches)
    if fix is not None:
        expected = "an iterable of batches, such as a DataLoader or a list"
        raise TypeMismatchError(message(expected, describe(batches), fix))


def _not_batches(batches: object) -> str | None:
    """Return what to pass instead, or None where ``batches`` will do."""
    if isinstance(batches, nn.Module):
        return "pass the batches of data after the model"
    if isinstance(batches, Tensor) or type(batches).__module__ == "numpy":
        array = "" if isinstance(batches, Tensor) else " of torch.from_numpy(array)"
        return f"put a single batch into a list: [batch]{array and f', made{array}'}"
    if isinstance(batches, Mapping):
        key, value = next(iter(batches.items()), (None, None))
        if _is_loader(value):
            return f"pass one of the loaders in it, such as batches[{key!r}]"
        return "put a single batch into a list: [batch]"
    if isinstance(batches, (str, bytes, PurePath)):
        return "pass the data itself, as batches of tensors"
    if isinstance(batches, type):
        return f"pass an instance of it, {batches.__name__}(...)"
    if isinstance(batches, (list, tuple)) and _is_batch(batches):
        return "put a single batch into a list: [batch]"
    if isinstance(batches, Iterable):
        return None
    if isinstance(batches, Dataset):
        return "pass a loader of it: torch.utils.data.DataLoader(dataset, batch_size=64)"
    if callable(getattr(batches, "train_dataloader", None)):
        return "pass one of its loaders, such as datamodule.train_dataloader()"
    # Iterable by the older protocol alone.
    if callable(getattr(batches, "__getitem__", None)):
        return "pass a loader of it: torch.utils.data.DataLoader(dataset, batch_size=64)"
    if callable(batches):
        return "call it, and pass the loader that it returns"
    return "pass a DataLoader, or a list of batches"


def _is_batch(parts: list[Any] | tuple[Any, ...]) -> bool:
    """Return whether these are images with their labels: batches have as many axes each."""
    tensors = [part for part in parts if isinstance(part, Tensor) and part.dim()]
    if len(tensors) != len(parts) or not 2 <= len(parts) <= SHOWN:
        return False
    ranks, sizes = {part.dim() for part in tensors}, {len(part) for part in tensors}
    return len(ranks) > 1 and len(sizes) == 1


def _is_loader(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and isinstance(value[0], (Tensor, list, tuple, Mapping))
    return isinstance(value, Iterable) and not isinstance(value, (Tensor, str, Mapping))


def check_function(function: object, name: str, call: str) -> None:
    """Raise unless ``function`` is None or can be called with two arguments, as ``call`` shows.

    Raises:
        TypeMismatchError: it cannot.
    """
    if function is None:
        return
    received = f"{name} as {describe(function)}"
    if callable(function):
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # of a built-in function
            return
        with contextlib.suppress(TypeError):
            signature.bind(None, None)
            return
        received += f" of ({', '.join(signature.parameters)})"
    fix = f"pass {name}=lambda {call.partition('(')[2].rstrip(')')}: ..., or omit it"
    raise TypeMismatchError(message(f"{name} to be a function, called as {call}", received, fix))


def check_samples(samples: object) -> None:
    """Validate ``samples``.

    Raises:
        OptionError: it is neither None nor an integer of at least 1.
    """
    if samples is None or (_is_integer(samples) and operator.index(samples) >= 1):  # type: ignore[arg-type]
        return
    number = _number(samples)
    if samples == "all" or number == math.inf:
        fix = "pass samples=None for all"
    elif number is not None and number >= 1 and number == int(number):
        fix = f"pass an integer: samples={int(number)}"
    else:
        fix = "omit samples; the default suits most models"
    raise OptionError(
        message(
            "samples of at least 1, an integer, or None for all there are",
            f"samples={short(samples)}",
            fix,
        )
    )


def check_tolerance(tolerance: object) -> None:
    """Validate ``tolerance``.

    Raises:
        OptionError: it is not a number between 0 and 1: an error as large as the thing itself
            bounds nothing.
    """
    if tolerance is None:
        return
    text = isinstance(tolerance, (str, bytes, bool))
    number = _number(tolerance)
    if not text and number is not None and 0 < number < 1:
        return
    usable = isinstance(tolerance, str) and number is not None and 0 < number < 1
    raise OptionError(
        message(
            "tolerance as a relative standard error above 0 and below 1, a number",
            f"tolerance={short(tolerance)}",
            f"pass the number itself: tolerance={number:g}" if usable else "use 0.01, for 1 %",
        )
    )


def _is_integer(value: object) -> bool:
    """Return True for integers of Python and numpy, and False for truth values and tensors."""
    return hasattr(value, "__index__") and not isinstance(value, (bool, Tensor))


def _number(value: Any) -> float | None:
    """Return a number, also of its text, with or without %; None where it is none."""
    try:
        if isinstance(value, str) and value.rstrip().endswith("%"):
            return float(value.rstrip().removesuffix("%")) / 100
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
