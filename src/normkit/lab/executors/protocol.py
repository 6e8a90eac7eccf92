"""What the lab asks of the place where runs are carried out.

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
    """A job that is over: ``result`` is what it returned, None if its worker died."""

    argument: str
    result: str | None


class Executor(Protocol):
    """What the lab asks of the place where runs are carried out."""

    @property
    def free(self) -> int:
        """How many more jobs can start at once."""

    @property
    def busy(self) -> int:
        """How many jobs were submitted that :meth:`wait` has not returned."""

    def submit(self, argument: str) -> None:
        """Start the job on this argument."""

    def wait(self, seconds: float) -> list[EndedJob]:
        """The jobs that ended, as soon as there is one, or none when the time is over."""

    def stop(self) -> None:
        """Ask all jobs to end at their next step."""

    def close(self) -> None:
        """Wait for what runs, then give everything back."""
