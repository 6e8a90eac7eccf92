"""From whatever a loader yields to a call of the model."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import DataError, OptionError, TypeMismatchError, explain
from normkit.statistics.preserve import apart

__all__ = [
    "Forward",
    "check_batches",
    "check_samples",
    "check_tolerance",
    "feed",
    "moved",
    "prepared",
    "samples_in",
]

Forward = Callable[[nn.Module, Any], Any]
"""``forward(model, batch)`` runs the model on a batch."""

_HOW = "pass forward=lambda model, batch: model(...)"


def check_batches(batches: object) -> None:
    """Refuse what cannot be a stream of batches, before anything is done.

    Raises:
        TypeMismatchError: a single tensor, a mapping, or nothing one can iterate over.
    """
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        came = f"a {type(batches).__name__}"
        raise TypeMismatchError(
            explain(
                "batches are an iterable of batches, such as a DataLoader or a list",
                came + (f" of shape {tuple(batches.shape)}" if isinstance(batches, Tensor) else ""),
                "put a single batch into a list: [batch]",
            )
        )


def leaves(batch: object) -> list[Tensor]:
    """The tensors of a batch, however it nests them."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        return [tensor for part in batch for tensor in leaves(part)]
    return []


def samples_in(batch: object) -> int | None:
    """Length of the first axis of the first tensor that has one; None without such a tensor.

    Tensors that are empty count only if all are: a batch without boxes has images all the same.
    Of a list of images, as detectors take them, its length.

    >>> samples_in({"id": torch.tensor(3), "image": torch.zeros(8, 3, 4, 4)})
    8
    >>> samples_in(([torch.zeros(3, 4, 4), torch.zeros(3, 5, 6)], "targets"))
    2
    """
    first = batch[0] if isinstance(batch, (list, tuple)) and batch else None
    if isinstance(first, (list, tuple)) and first and all(isinstance(t, Tensor) for t in first):
        return len(first)
    lengths = [len(tensor) for tensor in leaves(batch) if tensor.dim()]
    return next((length for length in lengths if length), 0 if lengths else None)


def prepared(batches: Iterable[Any], prepare: Callable[[Any], Any]) -> Iterable[Any]:
    """Each batch as ``prepare`` makes it, to be gone over as often as ``batches`` themselves.

    >>> list(prepared([1, 2], str))
    ['1', '2']
    """
    found = _Prepared(batches, prepare)
    return iter(found) if isinstance(batches, Iterator) else found


class _Prepared(Iterable[Any]):
    def __init__(self, batches: Iterable[Any], prepare: Callable[[Any], Any]) -> None:
        self._batches, self._prepare = batches, prepare

    def __iter__(self) -> Iterator[Any]:
        return map(self._prepare, apart(self._batches))


def moved(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device.

    >>> moved((torch.ones(1), "a"), torch.device("meta"))
    (tensor(..., device='meta', size=(1,)), 'a')
    """
    # Libraries have classes of their own for batches, which know how to move.
    if isinstance(batch, Tensor) or callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        parts = [moved(part, device) for part in batch]
        if isinstance(batch, list):
            return parts
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch


def feed(model: nn.Module, batch: Any, forward: Forward | None) -> Any:
    """Run ``model`` on ``batch``; what it gives back.

    A tensor is the input; of a tuple or list the first element is; of a mapping, those entries
    that the model's ``forward`` names.

    Raises:
        DataError: there is no tensor in the batch, or it lies on a device where the model has
            nothing.
        OptionError: a mapping of which the model's ``forward`` names nothing.
    """
    if forward is not None:
        return forward(model, batch)
    if isinstance(batch, Mapping):
        given = _named(model, batch)
        _check(model, batch, list(given.values()))
        return model(**given)
    first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    _check(model, batch, [first])
    return model(first)


def _named(model: nn.Module, batch: Mapping[Any, Any]) -> dict[str, Any]:
    wanted = inspect.signature(model.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in wanted.values()):
        return {str(key): value for key, value in batch.items()}
    given = {key: value for key, value in batch.items() if key in wanted}
    if not given:
        raise OptionError(
            explain(
                f"of a mapping the entries are passed that {type(model).__name__}.forward names: "
                + ", ".join(wanted),
                f"a batch with {', '.join(map(str, batch)) or 'nothing'}",
                _HOW,
            )
        )
    return given


def _check(model: nn.Module, batch: object, given: list[Any]) -> None:
    inputs = leaves(given)
    if not inputs:
        raise DataError(
            explain(
                "the first element of a batch is a tensor, the model's input",
                _shown(batch),
                _HOW,
            )
        )
    given_on = {t.device for t in inputs}
    # Where the first of the model's tensors lies, usually all do; to ask each takes a while.
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    if first is None or given_on == {first.device}:
        return
    here = {t.device for t in (*model.parameters(), *model.buffers())}
    away = given_on - here
    if away:
        raise DataError(
            explain(
                "batches lie on a device of the model's",
                f"one on {_listed(away)} for a model on {_listed(here)}",
                "move the model, or the batches: (images.to(device) for images, _ in loader)",
            )
        )


def _listed(devices: set[torch.device]) -> str:
    return ", ".join(sorted(map(str, devices)))


def _shown(batch: object) -> str:
    if isinstance(batch, (list, tuple)):
        inside = ", ".join(type(part).__name__ for part in batch[:3])
        return f"a {type(batch).__name__} of {inside or 'nothing'}"
    return f"a {type(batch).__name__}"


def check_samples(samples: int | None) -> None:
    """Refuse a number of samples that is none.

    Raises:
        OptionError: not an integer of at least 1, nor None.
    """
    if samples is not None and (
        not isinstance(samples, int) or isinstance(samples, bool) or samples < 1
    ):
        raise OptionError(
            explain(
                "samples is a number of at least 1, or None for all there are",
                f"samples={samples!r}",
                "leave it out: the default is enough for most",
            )
        )


def check_tolerance(tolerance: float | None) -> None:
    """Refuse a relative standard error that is none.

    Raises:
        OptionError: not above 0, or not finite.
    """
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise OptionError(
            explain(
                "tolerance is a relative standard error above 0",
                f"tolerance={tolerance!r}",
                "use 0.01, for one percent",
            )
        )
