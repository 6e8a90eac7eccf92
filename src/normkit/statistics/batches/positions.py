"""Positions in a loader: iterators over it that have begun and not ended."""

from __future__ import annotations

import contextlib
import gc
import operator
import types
from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

__all__ = ["goes_on", "positions"]


def goes_on(dataset: Any, position: Any) -> bool:
    """Return True if iterating over ``dataset`` continues an iterator that is in use."""
    # A generator is a new one each time.
    return not isinstance(position, types.GeneratorType) and iter(dataset) is position


def positions(source: Any, parts: Mapping[str, Any]) -> list[Any]:
    """Return the iterators over ``source`` that have begun and not ended, except its own parts."""
    ids = {id(part) for part in parts.values()}
    dataset = getattr(source, "dataset", source)
    streams = isinstance(dataset, IterableDataset)
    active = []
    for one in gc.get_objects():
        # Its type, as some objects do something when they are asked for their class.
        kind = type(one)
        if kind is types.GeneratorType:
            # A method of the loader or of the dataset.
            owner = _owner(one)
            if owner is not None and (owner is source or (streams and owner is dataset)):
                active.append(one)
        elif not issubclass(kind, _BaseDataLoaderIter) or id(one) in ids:
            continue
        elif streams and one._dataset is dataset:
            fetcher: Any = getattr(
                one, "_dataset_fetcher", None
            )  # none where workers have the dataset
            position = getattr(fetcher, "dataset_iter", None)
            if position is not None and not (fetcher.ended or _is_over(position)):
                active.append(position)
        elif (
            isinstance(source, DataLoader)
            and one._index_sampler is source._index_sampler
            and not (_is_over(one._sampler_iter) or one._num_yielded >= _length(source))
        ):
            active.append(one)
    return active


def _owner(generator: types.GeneratorType[Any, Any, Any]) -> Any:
    """Return the object whose method a generator is, or whatever else its first argument was."""
    names = generator.gi_code.co_varnames[: generator.gi_code.co_argcount]
    frame = generator.gi_frame  # None once it has ended
    return frame.f_locals.get(names[0]) if frame is not None and names else None


def _is_over(iterator: Any) -> bool:
    if isinstance(iterator, types.GeneratorType):
        return iterator.gi_frame is None
    with contextlib.suppress(Exception):
        return operator.length_hint(iterator, 1) == 0
    return False


def _length(loader: DataLoader[Any]) -> float:
    try:
        return len(loader)
    except Exception:
        return float("inf")
