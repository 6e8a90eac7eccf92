"""A terminal, as far as the board writes to it: rows of text, a cursor, what has scrolled away."""

from __future__ import annotations

import re

_CODE = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])")


class Terminal:
    """Understands text, line ends, moving up, erasing, and (by leaving them out) colours.

    Attributes:
        rows: what stands on the screen.
        gone: what has scrolled away above it.
        blanks: how often a row with text was erased whole; what blinks.
        frames: the screen after each write.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows = [""]
        self.gone: list[str] = []
        self.blanks = 0
        self.row = self.column = 0
        self.frames: list[list[str]] = []

    def write(self, text: str) -> int:
        at = 0
        while at < len(text):
            if match := _CODE.match(text, at):
                self._obey(match)
                at = match.end()
                continue
            self._put(text[at])
            at += 1
        self.frames.append(list(self.rows))
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True

    @property
    def encoding(self) -> str:
        return "utf-8"

    @property
    def everything(self) -> list[str]:
        """All rows, those that scrolled away too."""
        return [row.rstrip() for row in (*self.gone, *self.rows)]

    def _put(self, sign: str) -> None:
        if sign == "\n":
            self.column = 0
            self.row += 1
            if self.row == len(self.rows):
                self.rows.append("")
            if len(self.rows) > self.height:
                self.gone.append(self.rows.pop(0))
                self.row -= 1
        elif sign == "\r":
            self.column = 0
        else:
            if self.column >= self.width:
                self._put("\n")
            row = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = row[: self.column] + sign + row[self.column + 1 :]
            self.column += 1

    def _obey(self, match: re.Match[str]) -> None:
        private, number, code = match.groups()
        if private or code == "m":
            return
        if code == "A":
            assert int(number or 1) <= self.row, "moves above the screen: what is there is not ours"
            self.row -= int(number or 1)
        elif code == "K":
            if number == "2":  # of a spinner's single row
                self.rows[self.row] = ""
                return
            assert number in ("", "0"), number
            self.blanks += self.column == 0 and bool(self.rows[self.row].strip())
            self.rows[self.row] = self.rows[self.row][: self.column]
        elif code == "J":
            del self.rows[self.row + 1 :]
            self.rows[self.row] = self.rows[self.row][: self.column]
        else:
            raise AssertionError(f"a code that this terminal does not know: {match[0]!r}")
