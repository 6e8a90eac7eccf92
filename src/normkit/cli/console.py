"""Functions that all commands share: printing, JSON, errors, and missing packages."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.console import Console

from normkit.cli import INTERRUPTED, USAGE
from normkit.errors import NormkitError, how_to_install, message

__all__ = [
    "INTERRUPTED",
    "USAGE",
    "console",
    "errors",
    "needs",
    "needs_lab",
    "plain_warnings",
    "print_error",
    "print_json",
    "print_usage_error",
    "terminated_like_interrupted",
]

_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)")

LAB = ("platformdirs", "pooch", "scipy", "plotly", "jinja2")


def console(*, stderr: bool = False) -> Console:
    """Return the terminal. Markup and emoji are off: names of users may look like either.

    Lines that go to a file or a pipe are not wrapped.
    """
    out = Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=False)
    if not out.is_terminal:
        out.width = 200
    return out


def print_json(value: Any) -> None:
    """Print one JSON document on standard output; NaN and infinity become null."""
    sys.stdout.write(json.dumps(_to_json(value), indent=2, ensure_ascii=False, allow_nan=False))
    sys.stdout.write("\n")


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _to_json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Handle SIGTERM, which ``docker stop`` and batch systems send, as Ctrl-C."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Print warnings that normkit raises as one line each, without the place in its code."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def plain(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if Path(filename).is_relative_to(Path(__file__).parents[1]):
                console(stderr=True).print(f"normkit: {message}", style="yellow", soft_wrap=True)
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = plain
        yield


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Print an error raised by normkit as one message and exit with code 2."""
    try:
        yield
    except NormkitError as error:
        print_error(str(error))
        raise typer.Exit(USAGE) from None


def print_error(text: str) -> None:
    """Print a message on standard error, in red on a terminal.

    Whatever a message quotes, such as the error of another library, may contain escape sequences
    or other control characters: they are left out.
    """
    plain = "".join(c for c in _ESCAPE.sub("", text) if c.isprintable() or c == "\n")
    console(stderr=True).print(f"normkit: {plain}", style="bold red", soft_wrap=True)


def print_usage_error(error: Any) -> int:
    """Print what the parser of the command line raised, and return the exit code."""
    if not error.format_message():  # of a command without arguments: its help, already printed
        return USAGE
    command = error.ctx.command_path if error.ctx else "normkit"
    print_error(f"{error.format_message().rstrip('.')}. Fix: see {command} --help.")
    return USAGE


def needs_lab() -> None:
    """Exit with a message if packages of the lab are not installed."""
    needs("the lab", "lab", LAB)


def needs(what: str, extra: str, packages: Sequence[str]) -> None:
    """Exit with a message if packages of an extra are not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        received = f"an installation without {', '.join(missing)}"
        print_error(message(f"the packages of {what}", received, how_to_install(extra)))
        raise typer.Exit(USAGE)
