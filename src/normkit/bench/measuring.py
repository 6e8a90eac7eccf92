"""Times functions against each other: in one process, in turn, median of many."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

__all__ = ["Times", "in_turn", "median_interval"]

CHECK_EVERY = 8


@dataclasses.dataclass(frozen=True)
class Times:
    """What was timed: seconds of each side, one entry a round."""

    seconds: Mapping[str, tuple[float, ...]]

    @property
    def rounds(self) -> int:
        """How often each side ran."""
        return min(map(len, self.seconds.values()))

    def of(self, side: str) -> float:
        """Median seconds of a side."""
        return median(self.seconds[side])

    def ratio(self, first: str, second: str) -> tuple[float, float, float]:
        """How many times as long ``first`` takes as ``second``: median and 95 % interval.

        The ratio is taken round by round, so that what slows a whole round down (another
        program, a lower clock) is in both of its members.

        >>> Times({"a": (2.0, 4.0, 6.0), "b": (1.0, 2.0, 3.0)}).ratio("a", "b")
        (2.0, 2.0, 2.0)
        """
        pairs = zip(self.seconds[first], self.seconds[second], strict=True)
        return median_interval([a / b for a, b in pairs])


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median with its 95 % interval by order statistics, which assumes no distribution.

    With fewer than six values no pair of them has 95 %, and the interval is their whole range.

    >>> median_interval([3.0, 1.0, 2.0])
    (2.0, 1.0, 3.0)
    """
    ordered = sorted(values)
    count = len(ordered)
    # Binomial(n, 1/2) by its normal approximation.
    low = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)))
    return median(ordered), ordered[low], ordered[count - 1 - low]


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    # A collection in the midst of one side's turn would be counted as that side's.
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def in_turn(
    sides: Mapping[str, Callable[[], None]],
    *,
    seconds: float,
    least: int = 5,
    most: int = 2000,
    warm: int = 2,
    narrow: float = 0.01,
    pair: tuple[str, str] | None = None,
) -> Times:
    """Run all sides once in each round, in an order that rotates, until enough is known.

    A side frees what it made before it returns, so giving memory back is part of its time.

    Args:
        sides: what to time, by name.
        seconds: begin no further round after this long, warming up not counted.
        least: rounds to make in any case.
        most: rounds to make at most.
        warm: rounds made first and not counted; one where that takes long.
        narrow: stop once the interval of the ratio reaches no further than this share of it.
        pair: the two sides of that ratio; the first two if not given.
    """
    names = list(sides)
    first, second = pair or (names[0], names[1])
    taken: dict[str, list[float]] = {name: [] for name in names}
    clock = time.perf_counter
    with _no_collection():
        begin = clock()
        for _ in range(warm):
            for name in names:
                sides[name]()
            if clock() - begin > seconds / 2:
                break
        end = clock() + seconds
        for done in range(most):
            if done >= least and clock() > end:
                break
            if done >= 2 * CHECK_EVERY and done % CHECK_EVERY == 0:
                middle, low, high = Times(_frozen(taken)).ratio(first, second)
                if high - low < 2 * narrow * middle:
                    break
            turn = done % len(names)
            for name in (*names[turn:], *names[:turn]):
                run = sides[name]
                begin = clock()
                run()
                taken[name].append(clock() - begin)
    return Times(_frozen(taken))


def _frozen(taken: Mapping[str, list[float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(values) for name, values in taken.items()}
