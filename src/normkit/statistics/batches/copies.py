"""Copies of the parts that a loader moves on when it is iterated over, with their data shared."""

from __future__ import annotations

import copy
import itertools
import types
import warnings
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from normkit.errors import DataError, message
from normkit.statistics.batches.positions import goes_on, positions

__all__ = ["PartsCopier"]

SMALL = 1024
"""Tensors, arrays and lists of more elements are data; smaller ones may hold a position."""


class PartsCopier:
    """Copies the parts of one loader or stream that move on when it is iterated over.

    Made once for several passes, as looking through the data in the parts takes long.

    Args:
        parts: the parts, by name.
        source: what they are parts of.

    Attributes:
        shares: True if they have no copy, so that ``source`` itself moves on.
    """

    def __init__(self, parts: Mapping[str, Any], source: Any) -> None:
        self.shares = False
        self._source = source  # kept, so that no other object gets its identity
        bare = {name: _bare(part) for name, part in parts.items()}
        self._data, self._lists, self._objects = _sort_values(bare, source)
        self._is_first = True

    def copy(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Copy the parts as they are now; themselves if they ``shares``.

        Raises:
            DataError: they cannot be copied, and somebody is in the middle of ``source``.
        """
        if self.shares:
            return dict(parts)
        active: list[Any] = []
        try:
            copies = self._copy(parts)
            if "dataset" in parts and self._is_first:
                active = positions(self._source, parts)
                # One that comes from elsewhere, and so is that of the copy too.
                same = next((p for p in active if goes_on(copies["dataset"], p)), None)
                if same is not None:
                    raise TypeError(f"it shares one {type(same).__name__}")
            self._is_first = False
            return copies
        except Exception as error:
            if active or positions(self._source, parts):
                raise _disturbing(self._source, error) from error
            self.shares = True
            return dict(parts)

    def _copy(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        bare = {name: _bare(part) for name, part in parts.items()}
        with warnings.catch_warnings():
            # Later Pythons no longer copy the iterators of itertools.
            warnings.simplefilter("ignore")
            # Together, so that parts that share a generator share its copy.
            try:
                copies = copy.deepcopy(bare, self._memo())
            except Exception:
                # Locks, connections and the like, which have no copy and no position either.
                self._data.update((id(one), one) for one in self._objects if _stands_still(one))
                copies = copy.deepcopy(bare, self._memo())
            if "dataset" in parts:
                copies["dataset"] = _as_in(parts["dataset"], copies["dataset"])
        return copies

    def _memo(self) -> dict[int, Any]:
        # Taking from the copy leaves a list as it is; a copy of each record takes long.
        return self._data | {id(value): copy.copy(value) for value in self._lists}


def _disturbing(source: Any, error: Exception) -> DataError:
    kind = type(source).__name__
    data = type(_bare(getattr(source, "dataset", source))).__name__
    return DataError(
        message(
            "a loader that can be read without disturbing the epoch in progress",
            f"a {kind} of a {data} in the middle of an epoch, whose position cannot be copied "
            f"({type(error).__name__}: {error})",
            "pass another loader, with a dataset and sampler of its own; or call before or "
            "after the epoch",
        )
    )


def _bare(part: Any) -> Any:
    """Take a DataPipe out of what a loader wraps it in, which pickles where a copy would do."""
    return getattr(part, "_datapipe", part)


def _as_in(dataset: Any, copied: Any) -> Any:
    """Wrap the copy of a DataPipe as the loader's own is."""
    return type(dataset)(copied) if hasattr(dataset, "_datapipe") else copied


def _stands_still(value: Any) -> bool:
    """Return True if ``value`` cannot be copied, and nothing can be taken from it in turn."""
    if any(hasattr(type(value), name) for name in _TAKES):
        return False
    try:
        value.__reduce_ex__(4)
    except Exception:
        return True
    return False


_TAKES = ("__next__", "read", "recv", "get", "fetchone", "value")


def _sort_values(
    parts: Mapping[str, Any], source: Any
) -> tuple[dict[int, Any], list[Any], list[Any]]:
    """Return all values within ``parts``: data by identity, large lists of data, and objects."""
    data: dict[int, Any] = {}
    lists, others = [], []
    # Of any class, such as a list, to which samplers refer.
    if "dataset" not in parts and isinstance(source, DataLoader):
        data[id(source.dataset)] = source.dataset
    visited = set(data)
    values = list(parts.values())
    while values:
        value = values.pop()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if _is_data(value):
            data[id(value)] = value
        elif type(value) in (list, dict) and len(value) > SMALL and _is_plain(value):
            lists.append(value)
        elif isinstance(value, (list, tuple)):
            values += value
        elif isinstance(value, dict):
            values += value.values()
        elif not isinstance(value, (type, types.FunctionType)):
            others.append(value)
            values += getattr(value, "__dict__", {}).values()
    return data, lists, others


def _is_data(value: object) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return (value.numel() if isinstance(value, Tensor) else value.size) > SMALL
    if isinstance(value, Dataset):
        return not isinstance(value, IterableDataset)
    cls = type(value)
    table = cls.__module__.partition(".")[0] in _TABLES and not hasattr(cls, "__next__")
    return table or isinstance(value, (nn.Module, types.ModuleType))


def _is_plain(value: object) -> bool:
    """Return True for numbers, texts and tensors, in lists and dicts within each other."""
    level = [value]
    for _ in range(MAX_NESTED):
        kinds = set(map(type, level))
        if not all(kind in _NESTS or issubclass(kind, _PLAIN) for kind in kinds):
            return False
        if np.ndarray in kinds and any(type(o) is np.ndarray and o.dtype.hasobject for o in level):
            return False
        nested: list[Any] = [one for one in level if type(one) in _NESTS]
        if not nested:
            return True
        parts = (one.values() if type(one) is dict else one for one in nested)
        level = list(itertools.chain.from_iterable(parts))
    return False


MAX_NESTED = 8
_NESTS = (list, tuple, dict)
_PLAIN = (int, float, complex, str, bytes, type(None), Tensor, np.ndarray, np.generic, PurePath)

_TABLES = {"pyarrow", "pandas", "polars", "h5py", "zarr"}
