"""Options that several commands of ``normkit lab`` share."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "REPORT",
    "STORE",
    "WORD_STYLE",
    "ClaimsArgument",
    "JsonOption",
    "PresetName",
    "StoreOption",
]

STORE = Path("runs") / "lab.sqlite"
REPORT = Path("runs") / "report.html"
WORD_STYLE = {"supported": "green", "not supported": "red", "undecided": "yellow"}


class PresetName(str, enum.Enum):
    """How much is trained."""

    quick = "quick"
    full = "full"
    paper = "paper"


StoreOption = Annotated[Path, typer.Option("--store", help="The file that keeps all runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
ClaimsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Claims by their key, such as C1, or 'all'; those of the demo if none."),
]
