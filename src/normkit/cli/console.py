"""What all commands share: printing, JSON, and errors that end in one clear message."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from rich.console import Console

from normkit.cli import INTERRUPTED, USAGE
from normkit.errors import NormkitError

__all__ = [
    "INTERRUPTED",
    "USAGE",
    "console",
    "errors",
    "needs",
    "needs_lab",
    "print_json",
    "terminated_like_interrupted",
]

LAB = ("platformdirs", "pooch", "scipy", "plotly", "jinja2")


def console(*, stderr: bool = False) -> Console:
    """The terminal. Text is never taken for markup, as it may hold brackets of its own.

    What is not a terminal (a file, a pipe) gets lines that are not broken.
    """
    out = Console(stderr=stderr, markup=False, highlight=False, soft_wrap=False)
    if not out.is_terminal:
        out.width = 200
    return out


def print_json(value: Any) -> None:
    """Print for a program to read: one JSON document, numbers that are not finite as null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))
    sys.stdout.write("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Answer SIGTERM, which ``docker stop`` and batch systems send, as Ctrl-C is answered."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Print an error of normkit's as one message, and end with exit code 2."""
    try:
        yield
    except NormkitError as error:
        console(stderr=True).print(f"normkit: {error}", style="bold red", soft_wrap=True)
        raise typer.Exit(USAGE) from None


def needs_lab() -> None:
    """End with a clear message where the packages of the lab are not installed."""
    needs("the lab", "lab", LAB)


def needs(what: str, extra: str, packages: Sequence[str]) -> None:
    """End with a clear message where the packages of an extra are not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        console(stderr=True).print(
            f"normkit: {what} needs packages that the layers do not, and these are missing: "
            f"{', '.join(missing)}. To fix: pip install 'normkit[{extra}]'",
            style="bold red",
            soft_wrap=True,
        )
        raise typer.Exit(USAGE)
