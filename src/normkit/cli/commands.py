"""Register functions as commands, with their docstrings as help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer

__all__ = ["add", "paragraphs"]


def add(
    app: typer.Typer,
    function: Callable[..., Any],
    panel: str | None = None,
    name: str | None = None,
) -> None:
    """Make a function a command of ``app``; ``panel`` is its heading in the help."""
    text = paragraphs(inspect.getdoc(function) or "")
    app.command(name, help=text, rich_help_panel=panel)(function)


def paragraphs(text: str) -> str:
    """Join the lines of each paragraph, which a terminal breaks anew at its own width.

    >>> paragraphs("One\\nline.\\n\\nAnother.")
    'One line.\\n\\nAnother.'
    """
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
