"""A progress bar for those who wait at a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Bar", "bar"]


class Bar:
    """Counts samples; shows nothing where nobody sees it."""

    def __init__(self, shown: Progress | None) -> None:
        self._shown = shown
        self._task = shown.add_task("recalibrate") if shown else None
        self._passes = 0

    def begin(self, total: int | None) -> None:
        """Another pass, over ``total`` samples if that is known."""
        self._passes += 1
        if self._shown is not None and self._task is not None:
            title = "recalibrate" if self._passes == 1 else f"recalibrate, pass {self._passes}"
            self._shown.reset(self._task, total=total, description=title)

    def at(self, samples: int) -> None:
        """So many samples have been seen in this pass."""
        if self._shown is not None and self._task is not None:
            self._shown.update(self._task, completed=samples)


@contextlib.contextmanager
def bar(wanted: bool) -> Iterator[Bar]:
    """A bar on standard error, gone when it is over; none where that is no terminal."""
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield Bar(None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("samples"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        yield Bar(shown)
