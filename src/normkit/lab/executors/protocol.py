"""The interface between the lab and an executor of runs.

The lab hands an executor one job after another and asks which have ended. Nothing else passes
between them: results and progress go through the store. So an executor that sends its jobs to
other machines needs these few methods and nothing of the rest changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

__all__ = ["EndedJob", "Executor", "Job"]

Job = Callable[[str, Callable[[], bool]], str]
"""``job(argument, stopping)`` works, asks ``stopping()`` now and then, and says how it went."""


@dataclasses.dataclass(frozen=True)
class EndedJob:
    """A job that ended: ``result`` is its return value, None if its worker died."""

    argument: str
    result: str | None


class Executor(Protocol):
    """The interface of an executor of runs."""

    @property
    def free(self) -> int:
        """The number of jobs that can start now."""

    @property
    def busy(self) -> int:
        """The number of submitted jobs that :meth:`wait` has not returned."""

    def submit(self, argument: str) -> None:
        """Start the job with this argument."""

    def wait(self, seconds: float) -> list[EndedJob]:
        """Return the jobs that ended, as soon as there is one; none on timeout."""

    def stop(self) -> None:
        """Ask all jobs to end at their next step."""

    def close(self) -> None:
        """Wait for the running jobs, then release all resources."""
