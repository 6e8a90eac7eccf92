"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Device", "Force", "Json", "Key", "Model", "Trust"]

Key = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Part of the checkpoint, if several fit the model."),
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLASS",
        help="package.module.Class that the checkpoint may hold, if you trust it; repeatable.",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        metavar="MODULE:NAME",
        help="The model, such as train:model for `model` in train.py; or a function that makes it.",
    ),
]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="Device to run the model on, such as cuda.")
]
Force = Annotated[bool, typer.Option("--force", metavar="", help="Overwrite an existing file.")]
Json = Annotated[
    bool,
    typer.Option(
        "--json", metavar="", help="Print the result as JSON, and nothing else, on stdout."
    ),
]
