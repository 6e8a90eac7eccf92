"""Loaders that can be read while someone else is in the middle of an epoch over them."""

from __future__ import annotations

import copy
import io
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from normkit.errors import DataError, message
from normkit.statistics.batches.copies import copy_parts
from normkit.statistics.batches.positions import goes_on, positions

__all__ = ["begins_again", "detached_loader"]

SHOWN = 16
"""Elements of a list that are looked at for iterators."""

DEPTH = 3
"""Loaders are looked for within this many objects that wrap each other."""


def detached_loader(batches: Iterable[Any]) -> Iterable[Any]:
    """Copy a loader, so that iterating over the copy leaves the loader alone.

    The copy yields what the loader would yield next. A loader may be in the middle of an epoch:
    iterating over it once more would draw from its generator and its sampler, move on in a
    dataset that keeps its position, and where its workers persist, start the epoch over.

    Copied are DataLoaders, with their samplers and generators, and with an IterableDataset that is
    read in this process; such a dataset by itself; and objects that hold one of these, such as
    those that move batches to a device. Data is shared. What cannot be copied is shared too if
    nobody iterates over it: it is then consumed, as an iterator is. Iterators and all other
    iterables are returned as they are.

    Raises:
        DataError: someone is in the middle of the loader, which keeps its position in something
            that cannot be copied. Nothing has been drawn from it.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> loader = DataLoader(range(100), batch_size=50, shuffle=True, generator=generator)
    >>> first = [next(iter(detached_loader(loader))) for _ in range(2)]
    >>> torch.equal(first[0], first[1]), torch.equal(first[0], next(iter(loader)))
    (True, True)
    """
    detached: Iterable[Any] = _detached(batches, DEPTH, [])
    return detached


def begins_again(batches: Iterable[Any]) -> bool:
    """Return True if each iteration over ``batches`` yields them all, as far as can be known.

    >>> begins_again([1, 2]), begins_again(iter([1, 2]))
    (True, False)
    """
    shared: list[Any] = []
    detached = _detached(batches, DEPTH, shared)
    return not shared and (detached is not batches or not isinstance(batches, Iterator))


def _detached(value: Any, depth: int, shared: list[Any]) -> Any:
    """Copy a loader; enter into ``shared`` those that are not copied although they move on."""
    if isinstance(value, DataLoader):
        return _detached_dataloader(value, depth, shared)
    if isinstance(value, IterableDataset):
        return _copies({"dataset": value}, value, shared)["dataset"]
    if isinstance(value, Iterator) or not isinstance(value, Iterable) or not depth:
        return value
    attributes: dict[str, Any] = getattr(value, "__dict__", {})
    if _has_but_one(attributes):
        shared.append(value)
    inner = {name: _detached(part, depth - 1, shared) for name, part in attributes.items()}
    changed = {name: part for name, part in inner.items() if part is not attributes[name]}
    if not changed:
        return value
    wrapper = copy.copy(value)
    vars(wrapper).update(changed)
    return wrapper


def _has_but_one(attributes: Mapping[str, Any]) -> bool:
    """Return True if an object with these attributes has an iterator and nothing to begin again.

    With a list or loader beside it, the iterator may be one that each iteration makes anew.
    """
    # An open file is an iterator too, and may be a log.
    parts = [part for part in attributes.values() if not isinstance(part, io.IOBase)]
    lists = [list(itertools.islice(p, SHOWN)) for p in parts if isinstance(p, (list, tuple)) and p]
    iterators = [part for part in itertools.chain(parts, *lists) if isinstance(part, Iterator)]
    again = [p for p in parts if isinstance(p, (DataLoader, Dataset)) or _iterable_again(p)]
    whole = [part for part in lists if not any(isinstance(one, Iterator) for one in part)]
    return bool(iterators) and not again and not whole


def _iterable_again(part: object) -> bool:
    reiterable = isinstance(part, Iterable) and not isinstance(part, Iterator)
    return reiterable and not isinstance(part, (str, bytes, Mapping, list, tuple, set, frozenset))


def _detached_dataloader(loader: DataLoader[Any], depth: int, shared: list[Any]) -> Iterable[Any]:
    detached = copy.copy(loader)
    # Bypasses the loader's own guard, which forbids replacing its parts.
    state: dict[str, Any] = detached.__dict__
    # Those of other libraries may wrap one of torch's.
    inner = {n: _detached(v, depth, shared) for n, v in state.items() if isinstance(v, DataLoader)}
    names = ["generator", "sampler", "batch_sampler"]
    # Workers have their own copies of a dataset.
    if isinstance(loader.dataset, IterableDataset) and loader.num_workers == 0:
        names.append("dataset")
    # Some keep one endless iterator.
    names += [n for n, v in state.items() if isinstance(v, Iterator) and n != "_iterator"]
    parts = {name: state[name] for name in names if name in state}
    state.update(inner | _copies(parts, loader, shared))
    for name, value in _NOT_BEGUN.items():
        if name in state:
            state[name] = value
    return _Ending(detached) if callable(getattr(detached, "end", None)) else detached


class _Ending(Iterable[Any]):
    """Tells a loader of accelerate that an iteration has ended, also where it has been left early.

    Such a loader is the active one from its first batch to its last, and by it training
    steps know where gradient accumulation ends.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._loader
        finally:
            self._loader.end()


_NOT_BEGUN = {"_iterator": None, "persistent_workers": False, "_initial_iter_for_state_dict": False}
"""Attributes of a loader that nobody has iterated over; the last is that of torchdata's."""


def _copies(parts: Mapping[str, Any], source: Any, shared: list[Any]) -> dict[str, Any]:
    """Copy the parts of ``source`` that move on when it is iterated over.

    Returns:
        The parts themselves if they cannot be copied and nobody iterates over ``source``.

    Raises:
        DataError: they cannot be copied, and somebody does.
    """
    active: list[Any] = []
    try:
        with warnings.catch_warnings():
            # Later Pythons no longer copy the iterators of itertools.
            warnings.simplefilter("ignore")
            # Together, so that parts that share a generator share its copy.
            copies = copy_parts({n: _bare(part) for n, part in parts.items()}, source)
            if "dataset" in parts:
                copies["dataset"] = _as_in(parts["dataset"], copies["dataset"])
                active = positions(source, parts)
                # One that comes from elsewhere, and so is that of the copy too.
                same = next((p for p in active if goes_on(copies["dataset"], p)), None)
                if same is not None:
                    raise TypeError(f"it shares one {type(same).__name__}")
        return copies
    except Exception as error:
        if not (active or positions(source, parts)):
            shared.append(source)
            return dict(parts)
        kind = type(source).__name__
        data = type(_bare(getattr(source, "dataset", source))).__name__
        raise DataError(
            message(
                "a loader that can be read without disturbing the epoch in progress",
                f"a {kind} of a {data} in the middle of an epoch, whose position cannot be copied "
                f"({type(error).__name__}: {error})",
                "pass another loader, with a dataset and sampler of its own; or call before or "
                "after the epoch",
            )
        ) from error


def _bare(part: Any) -> Any:
    """Take a DataPipe out of what a loader wraps it in, which pickles where a copy would do."""
    return getattr(part, "_datapipe", part)


def _as_in(dataset: Any, copied: Any) -> Any:
    """Wrap the copy of a DataPipe as the loader's own is."""
    return type(dataset)(copied) if hasattr(dataset, "_datapipe") else copied
