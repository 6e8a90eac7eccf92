"""``normkit lab salvage``: copy the readable runs of a damaged store into a new one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from normkit.cli.console import console, errors, needs_lab, print_json
from normkit.cli.options import Json

__all__ = ["salvage"]


def salvage(
    damaged: Annotated[
        Path, typer.Argument(metavar="FILE", help="The damaged store; left unchanged.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The new store, for what is readable.")],
    as_json: Json = False,
) -> None:
    """Copy the readable runs of a damaged store into a new one; plan the others again."""
    needs_lab()
    with errors():
        from normkit.lab.salvage import salvage as save

        salvaged = save(damaged, out)
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(salvaged)})
        return
    lines = (
        f"{salvaged.results} finished and {salvaged.unfinished} unfinished runs saved to {out}",
        f"{salvaged.anew} runs restart from the beginning: part of their data is unreadable",
        f"{salvaged.lost} runs lost",
        f"{len(salvaged.plans)} plans saved",
        *(f"plan of {claim} ({preset}) incomplete" for claim, preset in salvaged.left_out),
    )
    for line in lines:
        console().print(line, soft_wrap=True)
    if salvaged.anew or salvaged.lost or salvaged.left_out:
        console().print(
            f"To fill the gaps, for each claim and preset: normkit lab run CLAIM --preset PRESET "
            f"--store {out}",
            soft_wrap=True,
        )
