"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Device", "Key", "Trust"]

Key = Annotated[str | None, typer.Option(help="Part of the checkpoint, if several fit the model.")]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        help="package.module.Class that the checkpoint may hold, if you trust it; repeatable."
    ),
]
Device = Annotated[str, typer.Option(help="Device to run the model on, such as cuda.")]
