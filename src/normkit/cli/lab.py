"""``normkit lab``: train the runs that claims need, judge the claims, report; other commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normkit.cli.console import errors, needs_lab, print_json
from normkit.cli.lab_claims import list_claims, nothing_to_judge, verdicts
from normkit.cli.lab_live import live
from normkit.cli.lab_options import (
    REPORT,
    STORE,
    JsonOption,
    OfClaimsArgument,
    PresetName,
    StoreOption,
)
from normkit.cli.lab_page import as_data, check_report, print_findings, print_page, write
from normkit.cli.lab_run import run, tour
from normkit.cli.lab_salvage import salvage
from normkit.cli.lab_sharing import compare, export, tensorboard

__all__ = ["app"]

app = typer.Typer(help="Test the claims about normalization.", no_args_is_help=True)

app.command("list")(list_claims)
for command in (run, tour, verdicts, live, export, tensorboard, compare, salvage):
    app.command()(command)


@app.command()
def report(
    claims: OfClaimsArgument = None,
    store: StoreOption = STORE,
    out: Annotated[Path, typer.Option(help="Where to write the report.")] = REPORT,
    preset: Annotated[PresetName | None, typer.Option(help="Default: the preset last run.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge the runs in the store, finished or not, and write the report. Trains nothing."""
    needs_lab()
    with errors():
        from normkit.lab.claims.registry import select
        from normkit.lab.data import is_here
        from normkit.lab.judge import Judged, judge_with_runs, last_preset
        from normkit.lab.store import Store as OpenStore

        check_report(out, store)
        with OpenStore(store, read_only=True) as opened:
            name = preset.value if preset else last_preset(opened)
            chosen = select(claims, present=is_here) if claims else None
            judged = judge_with_runs(opened, name, chosen) if name else Judged([], ())
        if name is None or not judged.findings:
            raise nothing_to_judge(store, name, claims or ())
        path = write(judged, out, name, None)
    if as_json:
        print_json(as_data(judged.findings, path))
    else:
        print_findings(judged.findings)
        print_page(judged.findings, path)
