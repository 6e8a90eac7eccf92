"""``normkit lab salvage``: copy the readable runs of a damaged store into a new one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from normkit.cli.console import console, errors, needs_lab, print_json
from normkit.cli.lab_options import JsonOption

__all__ = ["salvage"]


def salvage(
    damaged: Annotated[Path, typer.Argument(help="The damaged store; left unchanged.")],
    out: Annotated[Path, typer.Option(help="The new store, for what is readable.")],
    as_json: JsonOption = False,
) -> None:
    """Copy the readable runs of a damaged store into a new one; plan the others again."""
    needs_lab()
    with errors():
        from normkit.lab.salvage import salvage as save

        found = save(damaged, out)
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(found)})
        return
    lines = (
        f"{found.results} finished and {found.unfinished} unfinished runs saved to {out}",
        f"{found.anew} runs restart from the beginning: part of their data is unreadable",
        f"{found.lost} runs lost",
        f"{len(found.plans)} plans saved",
        *(f"plan of {claim} ({preset}) incomplete" for claim, preset in found.left_out),
    )
    for line in lines:
        console().print(line, soft_wrap=True)
    if found.anew or found.lost or found.left_out:
        console().print(
            f"To fill the gaps, for each claim and preset: normkit lab run CLAIM --preset PRESET "
            f"--store {out}",
            soft_wrap=True,
        )
