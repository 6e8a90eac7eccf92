"""Commands of ``normkit``: bench, data, doctor, fold, lab, merge and recalibrate.

Each imports its modules when it is called, so that ``normkit --help`` is fast.
"""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from normkit.cli.bench import bench
from normkit.cli.data import app as data_app
from normkit.cli.doctor import doctor
from normkit.cli.fold import fold
from normkit.cli.lab import app as lab_app
from normkit.cli.merge import merge
from normkit.cli.recalibrate import recalibrate

__all__ = ["app"]

app = typer.Typer(
    name="normkit",
    help="Normalization for PyTorch: layers, statistics, and a lab that tests claims.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(doctor)
app.command()(bench)
app.command()(recalibrate)
app.command()(fold)
app.command()(merge)
app.add_typer(data_app, name="data")
app.add_typer(lab_app, name="lab")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"normkit {importlib.metadata.version('normkit')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass
