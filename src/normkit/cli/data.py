"""``normkit data``: the data sets of the lab."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from normkit.cli.console import console, errors, needs_lab, print_json

__all__ = ["app"]

app = typer.Typer(help="List and fetch the data sets of the lab.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


@app.command("list")
def list_data(as_json: JsonOption = False) -> None:
    """List the data sets, and whether and where they are on this machine. Fetches nothing."""
    needs_lab()
    with errors():
        from normkit.lab import data

        found = data.status()
    if as_json:
        print_json([each._asdict() for each in found])
        return
    table = Table("data set", "here", "where", "size")
    for each in found:
        size = f"{each.size / 1e6:.1f} MB" if each.size else ""
        table.add_row(each.name, "yes" if each.available else "no", each.where, size)
    console().print(table)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="The data set.")] = "fashion-mnist",
    folder: Annotated[
        Path | None,
        typer.Option(help="Keep the files under this folder, not in the system's cache."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make sure that a data set is on this machine. What is here already is not fetched again."""
    needs_lab()
    with errors():
        from normkit.lab import data

        if folder is not None:
            # The loader keeps what it fetches in its cache; this names the cache.
            os.environ["NORMKIT_CACHE"] = str(folder.absolute())
        found = data.fetch(name, progress=not as_json)
    if as_json:
        print_json(found._asdict())
        return
    out = console()
    out.print(f"{found.name}: {found.where}", soft_wrap=True)
    if folder is not None:
        out.print(f"To use it from there: export NORMKIT_CACHE={folder.absolute()}", soft_wrap=True)
