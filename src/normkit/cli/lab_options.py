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
    "OfClaimsArgument",
    "PresetName",
    "PresetOption",
    "ReportOption",
    "StoreOption",
    "VerboseOption",
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


StoreOption = Annotated[
    Path,
    typer.Option("--store", metavar="FILE", help="The store: the file with all runs."),
]
ReportOption = Annotated[
    Path, typer.Option("--report", metavar="FILE", help="HTML page to write the report to.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Most runs at once. Default: one per core."),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", metavar="", help="Print a line for each run that ends.")
]
PresetOption = Annotated[
    PresetName | None, typer.Option("--preset", help="Default: the preset last run.")
]
OfClaimsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="CLAIM", help="Claims, such as C1 C5. Default: all of them."),
]
ClaimsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CLAIM",
        help='Claims to test, such as C1 C5, or "all". Default: those that `normkit lab list` '
        "marks with *.",
    ),
]
