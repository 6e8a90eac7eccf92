"""Options shared by commands of ``normkit lab``."""

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
    "OfClaimsArgument",
    "PresetName",
    "ReportOption",
    "StoreOption",
    "WorkersOption",
]

STORE = Path("runs") / "lab.sqlite"
REPORT = Path("runs") / "report.html"
WORD_STYLE = {"confirmed": "green", "partly": "cyan", "refuted": "red", "open": "yellow"}


class PresetName(str, enum.Enum):
    """Amount of training."""

    tour = "tour"
    quick = "quick"
    full = "full"
    paper = "paper"


StoreOption = Annotated[Path, typer.Option("--store", help="The store: the file with all runs.")]
ReportOption = Annotated[Path, typer.Option("--report", help="Where to write the report.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Maximum number of runs at once. Default: one per core."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OfClaimsArgument = Annotated[
    list[str] | None,
    typer.Argument(help='Claim keys such as C1, or "all", which is the default.'),
]
ClaimsArgument = Annotated[
    list[str] | None,
    typer.Argument(help='Claim keys such as C1, or "all". Default: those that `lab list` says.'),
]
