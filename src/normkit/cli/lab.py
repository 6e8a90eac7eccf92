"""``normkit lab``: train the runs that claims need, judge the claims, report; other commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from normkit.cli.commands import add, paragraphs
from normkit.cli.console import errors, needs_lab, print_json
from normkit.cli.lab_claims import nothing_to_judge, verdicts
from normkit.cli.lab_list import list_claims
from normkit.cli.lab_live import live
from normkit.cli.lab_options import REPORT, STORE, OfClaimsArgument, PresetOption, StoreOption
from normkit.cli.lab_page import as_data, check_report, print_findings, print_page, write
from normkit.cli.lab_run import run, tour
from normkit.cli.lab_salvage import salvage
from normkit.cli.lab_sharing import compare, export, tensorboard
from normkit.cli.lab_show import show
from normkit.cli.options import Json

__all__ = ["app"]

HELP = """Put claims about normalization to the test, on real images.

A claim is a sentence from an article or a paper, such as C3: batch normalization tolerates larger
learning rates. The lab trains small networks with several seeds each, and says with intervals what
holds.

All runs are kept in one file, the store; what is stopped resumes there.

Start with normkit lab tour: five claims in three minutes.
"""

app = typer.Typer(help=paragraphs(HELP), no_args_is_help=True)


def report(
    claims: OfClaimsArgument = None,
    store: StoreOption = STORE,
    out: Annotated[
        Path, typer.Option("--report", "--out", metavar="FILE", help="HTML page to write.")
    ] = REPORT,
    preset: PresetOption = None,
    as_json: Json = False,
) -> None:
    """Write the report of what is in the store, finished or not. Trains nothing."""
    needs_lab()
    with errors():
        from normkit.lab.claims.registry import select
        from normkit.lab.data import is_here
        from normkit.lab.judge import Judged, judge_with_runs, last_preset
        from normkit.lab.store import Store as OpenStore

        with OpenStore(store, read_only=True) as opened:
            check_report(out, store)
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


COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Test claims": (tour, run),
    "Read results": (list_claims, show, report, live, verdicts),
    "Share stores": (export, tensorboard, compare, salvage),
}
for panel, functions in COMMANDS.items():
    for function in functions:
        add(app, function, panel, "list" if function is list_claims else None)
