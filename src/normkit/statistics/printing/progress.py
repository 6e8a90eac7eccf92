"""Bar that counts samples while a measurement runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Bar", "bar"]


class Bar:
    """Counts samples; shows nothing where there is nothing to show it on."""

    def __init__(self, shown: Progress | None) -> None:
        self._shown = shown
        self._task = shown.add_task("recalibrate") if shown else None
        self._passes = 0

    def begin(self, total: int | None) -> None:
        """Start another pass, over ``total`` samples if that is known."""
        self._passes += 1
        if self._shown is not None and self._task is not None:
            title = "recalibrate" if self._passes == 1 else f"recalibrate, pass {self._passes}"
            self._shown.reset(self._task, total=total, description=title)

    def at(self, samples: int) -> None:
        """Set how many samples of this pass are done."""
        if self._shown is not None and self._task is not None:
            self._shown.update(self._task, completed=samples)


@contextlib.contextmanager
def bar(wanted: bool) -> Iterator[Bar]:
    """Yield a bar on standard error, removed at the end; an empty one off a terminal."""
    shown = _progress() if wanted else None
    if shown is None:
        yield Bar(None)
        return
    with shown:
        yield Bar(shown)


def _progress() -> Progress | None:
    # Optional: rich comes with normkit[cli], and the statistics work without it.
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )
    except ImportError:
        return None
    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("samples"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)
