"""Copies of what a loader moves on when it is iterated over, with the data in it shared."""

from __future__ import annotations

import copy
import itertools
import types
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

__all__ = ["copy_parts"]

SMALL = 1024
"""Tensors, arrays and lists of more elements are data; smaller ones may hold a position."""


def copy_parts(parts: dict[str, Any], source: Any) -> dict[str, Any]:
    """Copy parts of the loader or stream ``source``, together, and share the data that they hold.

    Raises:
        Exception: of any kind, where a part has no copy and may hold a position.
    """
    shared, others = _shared_data(parts, source)
    try:
        return copy.deepcopy(parts, dict(shared))
    except Exception:
        # Locks, connections and the like, which have no copy and no position either.
        shared.update((id(value), value) for value in others if _stands_still(value))
        return copy.deepcopy(parts, shared)


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


def _shared_data(parts: Mapping[str, Any], source: Any) -> tuple[dict[int, Any], list[Any]]:
    """Return, by identity, the data that copies of ``parts`` share with them; and other objects."""
    shared: dict[int, Any] = {}
    others = []
    # Of any class, such as a list, to which samplers refer.
    if "dataset" not in parts and isinstance(source, DataLoader):
        shared[id(source.dataset)] = source.dataset
    visited = set(shared)
    values = list(parts.values())
    while values:
        value = values.pop()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if _is_data(value):
            shared[id(value)] = value
        elif type(value) in (list, dict) and len(value) > SMALL and _is_plain(value):
            # Taking from the copy leaves the list as it is; a copy of each record takes long.
            shared[id(value)] = copy.copy(value)
        elif isinstance(value, (list, tuple)):
            values += value
        elif isinstance(value, dict):
            values += value.values()
        elif not isinstance(value, (type, types.FunctionType)):
            others.append(value)
            values += getattr(value, "__dict__", {}).values()
    return shared, others


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
