"""``normkit data``: list and fetch the data sets of the lab."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from normkit.cli.commands import add
from normkit.cli.console import console, errors, needs_lab, print_json
from normkit.cli.options import Json

__all__ = ["app"]

app = typer.Typer(help="List and fetch the data sets of the lab.", no_args_is_help=True)


def list_data(as_json: Json = False) -> None:
    """List the data sets and their location on this machine. Downloads nothing."""
    needs_lab()
    with errors():
        from normkit.lab import data

        datasets = data.status()
    if as_json:
        print_json([each._asdict() for each in datasets])
        return
    table = Table("data set", "available", "location", "size")
    for each in datasets:
        size = f"{each.size / 1e6:.1f} MB" if each.size else ""
        table.add_row(each.name, "yes" if each.available else "no", each.where, size)
    console().print(table)


def fetch(
    name: Annotated[str, typer.Argument(help="Name of the data set.")] = "fashion-mnist",
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Store the files in this folder instead of the system's cache."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Download a data set unless it is on this machine already."""
    needs_lab()
    with errors():
        from normkit.lab import data

        if folder is not None:
            # The loader stores downloads in this cache.
            os.environ["NORMKIT_CACHE"] = str(folder.absolute())
        dataset = data.fetch(name, progress=not as_json)
    if as_json:
        print_json(dataset._asdict())
        return
    out = console()
    out.print(f"{dataset.name}: {dataset.where}", soft_wrap=True)
    if folder is not None:
        out.print(f"To use that folder: export NORMKIT_CACHE={folder.absolute()}", soft_wrap=True)


add(app, list_data, name="list")
add(app, fetch)
