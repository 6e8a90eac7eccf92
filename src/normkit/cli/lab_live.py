"""``normkit lab live``: write the page on which a trained network runs in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normkit.cli.console import console, errors, needs_lab, print_json
from normkit.cli.options import Json

if TYPE_CHECKING:
    from normkit.report.live.recording import Recording

__all__ = ["live"]

LIVE = Path("runs") / "live.html"


def live(
    out: Annotated[Path, typer.Option(metavar="FILE", help="HTML page to write.")] = LIVE,
    train: Annotated[
        bool,
        typer.Option(
            "--train",
            metavar="",
            help="Train the network now, two minutes on one core, instead of using the training "
            "that normkit ships.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a page on which a network with batch normalization runs live, and print its path.

    One file that needs no network: sliders for batch size, corruption, prior and statistics.
    """
    needs_lab()
    with errors():
        from normkit.report import check_target
        from normkit.report.live import load, write

        check_target(out)
        path = write(_recorded() if train else load(), out)
    if as_json:
        print_json({"page": str(path)})
    else:
        console().print(f"Page: {path}", soft_wrap=True)


def _recorded() -> Recording:
    """Train and record, with a bar on standard error."""
    from rich.progress import Progress

    from normkit.lab import data
    from normkit.report.live.record import record, recorded_config

    config = recorded_config()
    dataset = data.load("fashion-mnist", allow_subset=False, progress=True)
    with Progress(console=console(stderr=True)) as bar:
        task = bar.add_task("training", total=config.steps)
        return record(config, dataset, progress=lambda step, _: bar.update(task, completed=step))
