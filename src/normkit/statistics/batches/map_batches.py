"""Apply a function to batches as they are drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["map_batches"]


def map_batches(
    function: Callable[[Any], Any], batches: Iterable[Any], limit: int | None = None
) -> Iterable[Any]:
    """Apply ``function`` to each of the first ``limit`` batches; re-iterable if ``batches`` is.

    >>> list(map_batches(str, [1, 2, 3], limit=2))
    ['1', '2']
    """
    mapped = _MappedBatches(function, batches, limit)
    return iter(mapped) if isinstance(batches, Iterator) else mapped


class _MappedBatches(Iterable[Any]):
    def __init__(
        self, function: Callable[[Any], Any], batches: Iterable[Any], limit: int | None
    ) -> None:
        self._function, self._batches, self._limit = function, batches, limit

    def __iter__(self) -> Iterator[Any]:
        return map(self._function, itertools.islice(self._batches, self._limit))
