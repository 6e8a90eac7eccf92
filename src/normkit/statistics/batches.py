"""Batches as loaders yield them: checked, counted, moved, and passed to a model."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import DataError, OptionError, TypeMismatchError, message
from normkit.statistics.preserve import detached_loader

__all__ = [
    "Forward",
    "check_batch",
    "check_batches",
    "check_samples",
    "check_tolerance",
    "count_samples",
    "map_batches",
    "run_model",
    "tensors_in",
    "to_device",
]

Forward = Callable[[nn.Module, Any], Any]
"""``forward(model, batch)`` runs the model on a batch."""

_PASS_FORWARD = "pass forward=lambda model, batch: model(...)"


def check_batches(batches: object) -> None:
    """Raise unless ``batches`` is an iterable of batches.

    Raises:
        TypeMismatchError: it is a single tensor, a mapping, or not iterable.
    """
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        shape = f" of shape {tuple(batches.shape)}" if isinstance(batches, Tensor) else ""
        raise TypeMismatchError(
            message(
                "an iterable of batches, such as a DataLoader or a list",
                f"a {type(batches).__name__}{shape}",
                "put a single batch into a list: [batch]",
            )
        )


def tensors_in(batch: object) -> list[Tensor]:
    """Return the tensors of a batch, however it nests them."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        return [tensor for part in batch for tensor in tensors_in(part)]
    return []


def count_samples(batch: object) -> int | None:
    """Return the length of the first axis of the first tensor that has one; None without such.

    Empty tensors count only if all are empty: a batch without boxes still has images. For a list
    of images, as detectors take them, it is the list's length.

    >>> count_samples({"id": torch.tensor(3), "image": torch.zeros(8, 3, 4, 4)})
    8
    >>> count_samples(([torch.zeros(3, 4, 4), torch.zeros(3, 5, 6)], "targets"))
    2
    """
    first = batch[0] if isinstance(batch, (list, tuple)) and batch else None
    if isinstance(first, (list, tuple)) and first and all(isinstance(t, Tensor) for t in first):
        return len(first)
    lengths = [len(tensor) for tensor in tensors_in(batch) if tensor.dim()]
    return next((length for length in lengths if length), 0 if lengths else None)


def map_batches(function: Callable[[Any], Any], batches: Iterable[Any]) -> Iterable[Any]:
    """Apply ``function`` to each batch; re-iterable if ``batches`` is.

    >>> list(map_batches(str, [1, 2]))
    ['1', '2']
    """
    mapped = _MappedBatches(function, batches)
    return iter(mapped) if isinstance(batches, Iterator) else mapped


class _MappedBatches(Iterable[Any]):
    def __init__(self, function: Callable[[Any], Any], batches: Iterable[Any]) -> None:
        self._function, self._batches = function, batches

    def __iter__(self) -> Iterator[Any]:
        return map(self._function, detached_loader(self._batches))


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch to a device.

    >>> to_device((torch.ones(1), "a"), torch.device("meta"))
    (tensor(..., device='meta', size=(1,)), 'a')
    """
    # Some libraries have their own classes for batches, with a method that moves them.
    if isinstance(batch, Tensor) or callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        parts = [to_device(part, device) for part in batch]
        if isinstance(batch, list):
            return parts
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch


def run_model(model: nn.Module, batch: Any, forward: Forward | None) -> Any:
    """Run ``model`` on ``batch`` and return its output.

    The input is the batch itself if it is a tensor, its first element if it is a tuple or list,
    and of a mapping the entries that the model's ``forward`` names.

    Raises:
        DataError: the batch has no tensor, or is on a device where the model has nothing.
        OptionError: the batch is a mapping, and the model's ``forward`` names none of its keys.
    """
    if forward is not None:
        return forward(model, batch)
    args, kwargs = _inputs(model, batch)
    return model(*args, **kwargs)


def check_batch(model: nn.Module, batch: Any, forward: Forward | None) -> None:
    """Raise what :func:`run_model` would raise before it runs the model."""
    if forward is None:
        _inputs(model, batch)


def _inputs(model: nn.Module, batch: Any) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(batch, Mapping):
        named = _named_inputs(model, batch)
        _check_inputs(model, batch, list(named.values()))
        return [], named
    first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    _check_inputs(model, batch, [first])
    return [first], {}


def _named_inputs(model: nn.Module, batch: Mapping[Any, Any]) -> dict[str, Any]:
    parameters = inspect.signature(model.forward).parameters
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


def _check_inputs(model: nn.Module, batch: object, inputs: list[Any]) -> None:
    tensors = tensors_in(inputs)
    if not tensors:
        raise DataError(
            message(
                "a batch whose first element is a tensor, the model's input",
                _describe(batch),
                _PASS_FORWARD,
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
                "move the model, or the batches: (images.to(device) for images, _ in loader)",
            )
        )


def _join(devices: set[torch.device]) -> str:
    return ", ".join(sorted(map(str, devices)))


def _describe(batch: object) -> str:
    if isinstance(batch, (list, tuple)):
        inside = ", ".join(type(part).__name__ for part in batch[:3])
        return f"a {type(batch).__name__} of {inside or 'nothing'}"
    return f"a {type(batch).__name__}"


def check_samples(samples: int | None) -> None:
    """Validate ``samples``.

    Raises:
        OptionError: it is neither None nor an integer of at least 1.
    """
    if samples is not None and (
        not isinstance(samples, int) or isinstance(samples, bool) or samples < 1
    ):
        raise OptionError(
            message(
                "samples of at least 1, or None for all there are",
                f"samples={samples!r}",
                "omit samples; the default suits most models",
            )
        )


def check_tolerance(tolerance: float | None) -> None:
    """Validate ``tolerance``.

    Raises:
        OptionError: it is not a finite number above 0.
    """
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise OptionError(
            message(
                "tolerance as a relative standard error above 0",
                f"tolerance={tolerance!r}",
                "use 0.01, for one percent",
            )
        )
