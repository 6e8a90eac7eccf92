"""``normkit lab salvage``: what is left of a damaged store."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from normkit.cli.console import console, errors, needs_lab, print_json
from normkit.cli.lab_options import JsonOption

__all__ = ["salvage"]


def salvage(
    damaged: Annotated[Path, typer.Argument(help="The damaged store. It is not changed.")],
    out: Annotated[Path, typer.Option(help="The new store, with what could be read.")],
    as_json: JsonOption = False,
) -> None:
    """Save what is readable of a damaged store. A run is saved whole, or planned anew."""
    needs_lab()
    with errors():
        from normkit.lab.salvage import salvage as save

        found = save(damaged, out)
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(found)})
        return
    lines = (
        f"{found.results} runs with their results saved to {out}, and {found.unfinished} "
        "unfinished ones",
        f"{found.anew} runs begin again: not all that they had is readable",
        f"{found.lost} runs lost",
        f"{len(found.plans)} plans saved",
        *(f"plan of {claim} ({preset}) not whole" for claim, preset in found.left_out),
    )
    for line in lines:
        console().print(line, soft_wrap=True)
    if found.anew or found.lost or found.left_out:
        console().print(
            f"To fill the gaps, for each claim and preset: normkit lab run CLAIM --preset PRESET "
            f"--store {out}",
            soft_wrap=True,
        )
