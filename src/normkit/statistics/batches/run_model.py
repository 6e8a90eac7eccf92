"""Run a model on a batch, by one rule for which part of the batch is its input."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from normkit.errors import DataError, NormkitError, OptionError, TypeMismatchError, message
from normkit.statistics.batches.tensors import is_list_of_samples, tensors_in
from normkit.statistics.printing.describe import describe

__all__ = [
    "Forward",
    "check_batch",
    "note_batch",
    "run_model",
]

Forward = Callable[[nn.Module, Any], Any]
"""``forward(model, batch)`` runs the model on a batch."""

_PASS_FORWARD = "pass forward=lambda model, batch: model(...)"


def run_model(model: nn.Module, batch: Any, forward: Forward | None) -> Any:
    """Run ``model`` on ``batch`` and return its output.

    The input is the batch itself if it is a tensor, its first element if it is a tuple or list,
    and of a mapping the entries that the model's ``forward`` names.

    Raises:
        DataError: the batch has no tensor, or is on a device where the model has nothing.
        OptionError: the batch is a mapping, and the model's ``forward`` names none of its keys.
        TypeMismatchError: the batch is a list of samples, or the model needs other inputs.
    """
    if forward is not None:
        return forward(model, batch)
    args, kwargs = _inputs(model, batch)
    return _call(model, batch, args, kwargs)


def check_batch(model: nn.Module, batch: Any, forward: Forward | None) -> None:
    """Raise what :func:`run_model` would raise before it runs the model."""
    if forward is None:
        _inputs(model, batch)


def _inputs(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        named = _named_inputs(model, batch)
        _check_inputs(model, batch, list(named.values()))
        return (), named
    _check_collated(batch)
    parts = isinstance(batch, (list, tuple)) and not isinstance(batch, PackedSequence)
    first = batch[0] if parts and batch else batch
    _check_inputs(model, batch, [first])
    return (first,), {}


def _call(model: nn.Module, batch: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    try:
        return model(*args, **kwargs)
    except TypeError as error:
        try:
            signature = inspect.signature(model.forward)
        except (TypeError, ValueError):
            raise error from None
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            parameters = signature.parameters
            call = f"{type(model).__name__}.forward({', '.join(parameters)})"
            needed = sum(p.default is p.empty for p in parameters.values())
            raise TypeMismatchError(
                message(
                    f"a batch that has all inputs of {call}"
                    if kwargs
                    else f"a batch whose first element is all that {call} needs",
                    describe(batch),
                    _other_call(args, batch, needed),
                )
            ) from error
        raise  # from within the model: the user's to see as it is


def _other_call(args: tuple[Any, ...], batch: object, needed: int) -> str:
    """Return a call that may be what the batch is for."""
    nested = args and isinstance(args[0], (list, tuple)) and len(args[0]) == needed
    if nested or (isinstance(batch, (list, tuple)) and len(batch) >= needed):
        inputs = "batch[0]" if nested else f"batch[:{needed}]"
        return f"pass forward=lambda model, batch: model(*{inputs})"
    return _PASS_FORWARD


def _check_collated(batch: object) -> None:
    """Raise if the batch is a list of samples, each a mapping, as loaders for detectors yield.

    Two mappings with other keys are inputs and targets.

    Raises:
        TypeMismatchError: it is.
    """
    if isinstance(batch, (list, tuple)) and is_list_of_samples(batch):
        raise TypeMismatchError(
            message(
                "a batch whose first element is the model's input",
                f"a {type(batch).__name__} of {len(batch)} samples, each {describe(batch[0])}",
                "pass forward=lambda model, batch: model(batch), if the model takes such a list",
            )
        )


_ANYTHING = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def _named_inputs(model: nn.Module, batch: Mapping[Any, Any]) -> dict[str, Any]:
    parameters = inspect.signature(model.forward).parameters
    # A wrapper, such as FSDP's, takes anything and hands it on.
    while {p.kind for p in parameters.values()} == _ANYTHING and isinstance(
        inner := getattr(model, "module", None), nn.Module
    ):
        model, parameters = inner, inspect.signature(inner.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return {str(key): value for key, value in batch.items()}
    inputs = {key: value for key, value in batch.items() if key in parameters}
    if not inputs:
        raise OptionError(
            message(
                f"a mapping with an entry that {type(model).__name__}.forward takes: "
                + ", ".join(parameters),
                f"a batch with {', '.join(map(str, batch)) or 'nothing'}",
                _PASS_FORWARD,
            )
        )
    return inputs


def note_batch(error: Exception, model: nn.Module, batch: object, number: int) -> None:
    """Add to an error which batch raised it, and to one of the model's what the model was given.

    Its type stays. Tracebacks show notes from Python 3.11 on; before, it is left as it is.
    """
    if not hasattr(error, "add_note"):
        return
    error.add_note(f"normkit: raised on batch {number}, {describe(batch)}.")
    if isinstance(error, NormkitError):
        return
    inputs = {t.dtype for t in tensors_in(batch)[:1]}
    weights = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if inputs and weights and not inputs & weights:
        kinds = ", ".join(sorted(map(str, weights)))
        error.add_note(f"The model's parameters are {kinds}: the input may need converting.")
    error.add_note(
        "The model gets a tensor as it is, the first element of a tuple or list, and the entries "
        f"of a mapping that its forward names; for anything else, {_PASS_FORWARD}."
    )


def _check_inputs(model: nn.Module, batch: object, inputs: list[Any]) -> None:
    tensors = tensors_in(inputs)
    if not tensors:
        raise DataError(
            message(
                "a batch whose first element is a tensor, the model's input",
                describe(batch),
                _make_tensors(inputs) or _PASS_FORWARD,
            )
        )
    devices = {t.device for t in tensors}
    # Usually all of a model is where its first tensor is, and to look at each takes time.
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    if first is None or devices == {first.device}:
        return
    on_model = {t.device for t in (*model.parameters(), *model.buffers())}
    elsewhere = devices - on_model
    if elsewhere:
        raise DataError(
            message(
                "batches on a device of the model",
                f"one on {_join(elsewhere)} for a model on {_join(on_model)}",
                "move the model, or the batches: pass forward=lambda model, batch: "
                "model(batch[0].to(device))",
            )
        )


def _make_tensors(inputs: list[Any]) -> str:
    """Return how to make tensors of inputs of a kind that often stands for them."""
    first = inputs[0] if inputs else None
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    package = type(first).__module__.partition(".")[0]
    if package == "numpy":
        return "make tensors of the arrays, torch.from_numpy(array), or load them by a DataLoader"
    if package == "PIL":
        return "make tensors of the images, such as with ToTensor() in the data set's transform"
    if isinstance(first, str):
        return "turn the texts into tensors first, with the model's tokenizer"
    return ""


def _join(devices: set[torch.device]) -> str:
    return ", ".join(sorted(map(str, devices)))
