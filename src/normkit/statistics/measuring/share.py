"""Share of one process in a pass: its batches, and how many of them are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from normkit.statistics.processes.lockstep import check_complete

__all__ = ["Share"]


class Share:
    """One rank's batches in one pass, and how many of them are done."""

    def __init__(self, start: Callable[[], Iterator[tuple[Any, bool]]], limit: float) -> None:
        """``start`` returns the batches, and with each whether it counts."""
        self._start = start
        self._stream: Iterator[tuple[Any, bool]] | None = None
        self._remaining = self._limit = limit
        self.samples = self.batches = self.remainder = self._largest = 0

    def advance(self, rounds: int, run: Callable[[Any, bool], int]) -> None:
        """Call ``run``, which returns the number of samples, on up to ``rounds`` batches."""
        if self._stream is None:
            self._stream = self._start()
        wanted, done = min(rounds, self._remaining), 0
        for batch, counts in islice(self._stream, int(wanted)):
            count = run(batch, counts)
            done += 1
            if counts:
                self.samples, self.batches = self.samples + count, self.batches + 1
                self._largest = max(self._largest, count)
                self.remainder = count if count < self._largest else 0
        if done < wanted:
            check_complete(self.batches, self._limit)
        self._remaining = self._remaining - done if done == wanted else 0

    def counts(self) -> list[int]:
        """Samples, batches, whether there are more, and the most samples one more may add."""
        more = self._remaining > 0
        return [self.samples, self.batches, int(more), self._largest if more else 0]
