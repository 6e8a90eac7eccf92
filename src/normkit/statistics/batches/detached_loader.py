"""Loaders that can be read while someone else is in the middle of an epoch over them."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from normkit.statistics.batches.copies import PartsCopier

__all__ = ["DetachedLoader"]

SHOWN = 16
"""Elements of a list that are looked at for iterators."""

DEPTH = 3
"""Loaders are looked for within this many objects that wrap each other."""


class DetachedLoader(Iterable[Any]):
    """Copy of a loader for each iteration, which leaves the loader itself alone.

    A copy yields what the loader would yield next. A loader may be in the middle of an epoch:
    iterating over it once more would draw from its generator and its sampler, move on in a
    dataset that keeps its position, and where its workers persist, start the epoch over.

    Copied are DataLoaders, with their samplers and generators, and with an IterableDataset that is
    read in this process; such a dataset by itself; and objects that hold one of these, such as
    those that move batches to a device. Data is shared. What cannot be copied is shared too if
    no epoch over it is in progress: it is then consumed, as an iterator is. Iterators and all other
    iterables are read themselves.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> loader = DataLoader(range(100), batch_size=50, shuffle=True, generator=generator)
    >>> detached = DetachedLoader(loader)
    >>> first, second = next(iter(detached)), next(iter(detached))
    >>> torch.equal(first, second), torch.equal(first, next(iter(loader)))
    (True, True)
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self._copiers: dict[int, PartsCopier] = {}  # by the identity of what they copy parts of
        self._holds_iterator = False  # in place of what it came from

    def __iter__(self) -> Iterator[Any]:
        return iter(self.copy())

    def copy(self) -> Iterable[Any]:
        """Return a copy to iterate over.

        Raises:
            DataError: an epoch over the loader is in progress, and its position cannot be copied.
                Nothing has been drawn from it.
        """
        copied: Iterable[Any] = self._detached(self._batches, DEPTH)
        return copied

    def begins_again(self) -> bool:
        """Return True if each iteration yields all batches, as far as can be known.

        >>> DetachedLoader([1, 2]).begins_again(), DetachedLoader(iter([1, 2])).begins_again()
        (True, False)
        """
        copied = self.copy()
        if self._holds_iterator or any(copier.shares for copier in self._copiers.values()):
            return False
        return copied is not self._batches or not isinstance(copied, Iterator)

    def _detached(self, value: Any, depth: int) -> Any:
        if isinstance(value, DataLoader):
            return self._detached_dataloader(value, depth)
        if isinstance(value, IterableDataset):
            return self._copies({"dataset": value}, value)["dataset"]
        if isinstance(value, Iterator) or not isinstance(value, Iterable) or not depth:
            return value
        attributes: dict[str, Any] = getattr(value, "__dict__", {})
        self._holds_iterator |= _has_but_one(attributes)
        inner = {name: self._detached(part, depth - 1) for name, part in attributes.items()}
        changed = {name: part for name, part in inner.items() if part is not attributes[name]}
        if not changed:
            return value
        wrapper = copy.copy(value)
        vars(wrapper).update(changed)
        return wrapper

    def _detached_dataloader(self, loader: DataLoader[Any], depth: int) -> Iterable[Any]:
        detached = copy.copy(loader)
        # Bypasses the loader's own guard, which forbids replacing its parts.
        state: dict[str, Any] = detached.__dict__
        # Those of other libraries may wrap one of torch's.
        inner = {n: self._detached(v, depth) for n, v in state.items() if isinstance(v, DataLoader)}
        names = ["generator", "sampler", "batch_sampler"]
        # Workers have their own copies of a dataset.
        if isinstance(loader.dataset, IterableDataset) and loader.num_workers == 0:
            names.append("dataset")
        # Some keep one endless iterator.
        names += [n for n, v in state.items() if isinstance(v, Iterator) and n != "_iterator"]
        parts = {name: state[name] for name in names if name in state}
        state.update(inner | self._copies(parts, loader))
        for name, value in _NOT_BEGUN.items():
            if name in state:
                state[name] = value
        return _Ending(detached) if callable(getattr(detached, "end", None)) else detached

    def _copies(self, parts: dict[str, Any], source: Any) -> dict[str, Any]:
        if id(source) not in self._copiers:
            self._copiers[id(source)] = PartsCopier(parts, source)
        return self._copiers[id(source)].copy(parts)


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
"""Attributes of a loader that has not been iterated over; the last is that of torchdata's."""


def _has_but_one(attributes: Mapping[str, Any]) -> bool:
    """Return True if an object with these attributes has an iterator and nothing to begin again.

    If it has a list or loader too, each iteration may make the iterator anew.
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
