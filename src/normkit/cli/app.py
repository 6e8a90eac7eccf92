"""Commands of ``normkit``: bench, data, doctor, fold, lab, merge and recalibrate.

Each imports its modules when it is called, so that ``normkit --help`` is fast.
"""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from normkit.cli.bench import bench
from normkit.cli.commands import add, paragraphs
from normkit.cli.data import app as data_app
from normkit.cli.doctor import doctor
from normkit.cli.fold import fold
from normkit.cli.lab import app as lab_app
from normkit.cli.merge import merge
from normkit.cli.recalibrate import recalibrate

__all__ = ["app"]

HELP = """Find and mend what is wrong with the normalization of a PyTorch model, and put what is
said about normalization to the test.

Accuracy in evaluation far below training? normkit doctor says why, normkit recalibrate mends it.

Each command has --help with its options, and --json for programs."""

MODEL, SPEED, LAB = "Your model", "Speed", "Claims about normalization"

app = typer.Typer(
    name="normkit",
    help=paragraphs(HELP),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
add(app, doctor, MODEL)
add(app, recalibrate, MODEL)
add(app, fold, MODEL)
add(app, merge, MODEL)
add(app, bench, SPEED)
app.add_typer(lab_app, name="lab", rich_help_panel=LAB)
app.add_typer(data_app, name="data", rich_help_panel=LAB)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"normkit {importlib.metadata.version('normkit')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            help="Print the version.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    pass
