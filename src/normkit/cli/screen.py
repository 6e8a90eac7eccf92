"""Lines on a terminal that are drawn over each other.

Only lines that changed are written, over the old ones and without erasing them first, so nothing
flickers, whatever the terminal. (``rich.live`` erases all lines for each frame.)
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

__all__ = ["Screen"]

UP, ERASE_REST, ERASE_BELOW = "\x1b[{}A\r", "\x1b[K", "\x1b[J"
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Screen:
    """Lines at the bottom of a terminal's output.

    Use it in ``with``, which hides the cursor meanwhile. There must be fewer lines than the
    terminal has rows, none wider than it: what has scrolled away cannot be drawn over.
    """

    def __init__(self, out: Console) -> None:
        self.out = out
        self._rows: list[str] = []
        self._size = out.size

    def __enter__(self) -> Screen:
        self._write(HIDE)
        return self

    def __exit__(self, *error: object) -> None:
        self._write(SHOW)

    def draw(self, lines: Sequence[Text]) -> None:
        """Draw these lines in place of the former ones."""
        rows = [self._ansi(line) for line in lines]
        if self.out.size != self._size:  # the terminal has broken the former ones anew
            self._rows, self._size = [], self.out.size
        before = self._rows
        if rows == before:
            return
        parts = [UP.format(len(before))] if before else []
        for number, row in enumerate(rows):
            unchanged = number < len(before) and row == before[number]
            parts.append("\n" if unchanged else f"{row}{ERASE_REST}\n")
        if len(rows) < len(before):
            parts.append(ERASE_BELOW)
        self._write("".join(parts))
        self._rows = rows

    def clear(self) -> None:
        """Erase the lines; what is printed next stands in their place."""
        if self._rows:
            self._write(UP.format(len(self._rows)) + ERASE_BELOW)
            self._rows = []

    def _ansi(self, line: Text) -> str:
        with self.out.capture() as capture:
            self.out.print(line, end="", soft_wrap=True)
        return capture.get()

    def _write(self, text: str) -> None:
        self.out.file.write(text)
        self.out.file.flush()
