"""Time functions against each other: interleaved in one process, median of many rounds."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

__all__ = ["Times", "median_interval", "time_interleaved", "wall_seconds"]

CHECK_EVERY = 8


@dataclasses.dataclass(frozen=True)
class Times:
    """Measured seconds of each side, one entry per round."""

    seconds: Mapping[str, tuple[float, ...]]

    @property
    def rounds(self) -> int:
        """Number of runs of each side."""
        return min(map(len, self.seconds.values()))

    def of(self, side: str) -> float:
        """Return the median seconds of a side."""
        return median(self.seconds[side])

    def ratio(self, first: str, second: str) -> tuple[float, float, float]:
        """Return the time of ``first`` over that of ``second``: median and 95 % interval.

        The ratio is taken round by round, so that whatever slows a whole round down (another
        program, a lower clock) affects both sides.

        >>> Times({"a": (2.0, 4.0, 6.0), "b": (1.0, 2.0, 3.0)}).ratio("a", "b")
        (2.0, 2.0, 2.0)
        """
        pairs = zip(self.seconds[first], self.seconds[second], strict=True)
        return median_interval([a / b for a, b in pairs])


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % interval by order statistics, free of distribution.

    With fewer than six values no pair covers 95 %, and the interval is their range.

    >>> median_interval([3.0, 1.0, 2.0])
    (2.0, 1.0, 3.0)
    """
    ordered = sorted(values)
    count = len(ordered)
    # Binomial(n, 1/2) by its normal approximation.
    low = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)))
    return median(ordered), ordered[low], ordered[count - 1 - low]


def wall_seconds(run: Callable[[], None]) -> float:
    """Return the seconds that a function takes on the clock of this process."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    # A collection during one side's run would be counted as that side's time.
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def time_interleaved(
    sides: Mapping[str, Callable[[], None]],
    *,
    seconds: float,
    min_rounds: int = 5,
    max_rounds: int = 2000,
    warmup: int = 2,
    precision: float = 0.01,
    pair: tuple[str, str] | None = None,
    measure: Callable[[Callable[[], None]], float] = wall_seconds,
) -> Times:
    """Run all sides once per round, in rotating order, until the ratio is precise enough.

    Each side frees its results before it returns, so releasing memory is part of its time.

    Args:
        sides: functions to time, by name.
        seconds: start no round after this time, not counting the warm-up.
        min_rounds: rounds to run even if that takes longer.
        max_rounds: rounds to run at most.
        warmup: rounds to run first, uncounted; only one if they take long.
        precision: stop once the interval of the ratio is within this fraction of it.
        pair: the two sides of that ratio; default: the first two.
        measure: returns the seconds of one call of a function; another device has another clock.
    """
    names = list(sides)
    first, second = pair or (names[0], names[1])
    seconds_of: dict[str, list[float]] = {name: [] for name in names}
    clock = time.perf_counter
    with _no_collection():
        begin = clock()
        for _ in range(warmup):
            for name in names:
                sides[name]()
            if clock() - begin > seconds / 2:
                break
        end = clock() + seconds
        for done in range(max_rounds):
            if done >= min_rounds and clock() > end:
                break
            if done >= 2 * CHECK_EVERY and done % CHECK_EVERY == 0:
                middle, low, high = Times(_as_tuples(seconds_of)).ratio(first, second)
                if high - low < 2 * precision * middle:
                    break
            first_index = done % len(names)
            for name in (*names[first_index:], *names[:first_index]):
                seconds_of[name].append(measure(sides[name]))
    return Times(_as_tuples(seconds_of))


def _as_tuples(seconds_of: Mapping[str, list[float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(values) for name, values in seconds_of.items()}
