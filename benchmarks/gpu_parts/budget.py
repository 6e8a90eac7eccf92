"""Time budget of a run: parts that no longer fit are skipped, and the record says so."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["OVERTIME_EXIT", "Budget"]

OVERTIME_EXIT = 4
"""Exit status of a run that its watchdog ended, such as in a compilation that hangs."""


class Budget:
    """Seconds that a run may take, counted from its creation.

    Args:
        seconds: of the whole run.
        clock: returns seconds; tests replace it.

    >>> times = iter([0.0, 100.0, 100.0, 470.0])
    >>> budget = Budget(480, clock=lambda: next(times))
    >>> budget.fits("layers", 60)
    True
    >>> budget.remaining()
    380.0
    >>> budget.fits("networks", 30), budget.skipped
    (False, ['networks: needs about 30 s, 10 s remain'])
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self.skipped: list[str] = []

    def remaining(self) -> float:
        """Return the seconds until the end, 0 after it."""
        return max(0.0, self._end - self._clock())

    def fits(self, part: str, seconds: float) -> bool:
        """Return True if ``seconds`` remain; otherwise note that ``part`` is skipped."""
        remaining = self.remaining()
        if remaining >= seconds:
            return True
        self.skipped.append(f"{part}: needs about {seconds:.0f} s, {remaining:.0f} s remain")
        return False

    @contextmanager
    def watchdog(self, grace: float = 15.0) -> Iterator[None]:
        """End the process ``grace`` seconds after the budget, whatever hangs in the block."""

        def end() -> None:
            print("The time is up and a part hangs: results until then are saved.", file=sys.stderr)
            sys.stderr.flush()
            os._exit(OVERTIME_EXIT)

        timer = threading.Timer(self.remaining() + grace, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
