"""``normkit doctor``: say what is wrong with a model's normalization, and mend it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normkit.cli.console import (
    INTERRUPTED,
    console,
    errors,
    needs,
    plain_warnings,
    print_json,
    terminated_like_interrupted,
)
from normkit.cli.options import Device, Key, Trust
from normkit.errors import OptionError, message

if TYPE_CHECKING:
    from normkit.cli.doctor_run import Outcome, Request

__all__ = ["FOUND", "doctor"]

FOUND = 1
"""Exit code where a finding is as severe as --fail-on."""

NEVER = "never"
LEVELS = ("error", "warning", "note", NEVER)


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(help="package.module:attribute, a module or a function that returns one."),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(help="Training batches, as package.module:attribute, as training takes them."),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(help="Evaluation batches with labels, likewise: measure what mending brings."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File by torch.save to load into the model.")
    ] = None,
    key: Key = None,
    trust: Trust = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="package.module:attribute, an optimizer or a function of the model."),
    ] = None,
    samples: Annotated[
        str, typer.Option(help="Read up to this many samples of each, or 'all'.")
    ] = "10000",
    forward: Annotated[
        str | None,
        typer.Option(help="package.module:function, called with the model and a batch."),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="package.module:function, called with the output and a batch: score by it."
        ),
    ] = None,
    device: Device = "cpu",
    mend: Annotated[
        Path | None,
        typer.Option(help="Mend what a checkpoint can hold, and write it to this new file."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    page: Annotated[Path | None, typer.Option(help="Write an HTML page with pictures.")] = None,
    sarif: Annotated[
        Path | None, typer.Option(help="Write SARIF 2.1.0, for code review services.")
    ] = None,
    fail_on: Annotated[
        str,
        typer.Option(help="Exit with 1 at a finding so severe: error, warning, note or never."),
    ] = "error",
    explain: Annotated[
        str | None,
        typer.Option(help="Print the explanation of a rule, such as NK104, or 'all' their titles."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for a program to read.")
    ] = False,
) -> None:
    """Say what is wrong with a model's normalization, and what mending it brings.

    MODEL alone is examined in a second; --train examines its running statistics too.

    --test measures what mending brings: it is tried on the same samples, and undone.

    All are imported from the current directory or the installed packages.

    Exit codes: 1 at a finding as severe as --fail-on that was not mended; else 0.

    2 if an option or a file is wrong; 130 if interrupted.
    """
    with errors():
        if explain is not None:
            _explain(explain, as_json)
            return
        request = _request(locals())
        # Standard output is for a program; what the user's modules print goes to standard error.
        quiet = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        try:
            with terminated_like_interrupted(), quiet, plain_warnings():
                outcome = _run(request)
        except KeyboardInterrupt:
            console(stderr=True).print("Stopped; nothing was written.")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(outcome.to_json())
    else:
        _print(outcome)
    if fail_on != NEVER and outcome.reaches(fail_on):
        raise typer.Exit(FOUND)


def _request(options: dict[str, Any]) -> Request:
    """Check what can be checked before anything is imported or computed."""
    from normkit.cli.doctor_run import Request

    if options["model"] is None:
        raise OptionError(
            message(
                "MODEL as package.module:attribute",
                "none",
                "normkit doctor train:model --train train:loader --test train:test_loader, for a "
                "train.py in this folder",
            )
        )
    if options["fail_on"] not in LEVELS:
        raise OptionError(
            message(
                "--fail-on error, warning, note or never",
                repr(options["fail_on"]),
                "choose one of these; the default is error",
            )
        )
    if options["page"] is not None:
        needs("the page", "lab", ("plotly", "jinja2"))
    return Request(**{name: options[name] for name in Request.__dataclass_fields__})


def _run(request: Request) -> Outcome:
    from normkit.cli.doctor_run import run

    with _progress() as note:
        return run(request, note)


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """Show stage and time on standard error: in place on a terminal, a line each elsewhere."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield lambda stage: out.print(f"normkit doctor: {stage}", soft_wrap=True)
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task("importing", total=None)
        yield lambda stage: progress.update(task, description=stage)


def _print(outcome: Outcome) -> None:
    from normkit.cli.doctor_screen import diagnosis_lines, outcome_lines, print_lines

    out = console()
    width = out.width if out.is_terminal else None
    titles = {rule.code: rule.title for rule in outcome.rules}
    print_lines(out, diagnosis_lines(outcome.diagnosis, titles, width))
    print_lines(out, outcome_lines(outcome, width))


def _explain(code: str, as_json: bool) -> None:
    from normkit.cli.doctor_screen import explanation_lines, print_lines, rule_list
    from normkit.doctor.rules import RULES

    chosen = [rule for rule in RULES if code.lower() in ("all", rule.code.lower())]
    if not chosen:
        raise OptionError(
            message(
                "--explain with the code of a rule, or 'all'",
                repr(code),
                f"choose one of {RULES[0].code} to {RULES[-1].code}; "
                "normkit doctor --explain all lists them",
            )
        )
    if as_json:
        print_json([{"rule": r.code, "title": r.title, "text": r.text} for r in chosen])
        return
    out = console()
    width = out.width if out.is_terminal else None
    whole = code.lower() == "all"
    print_lines(out, rule_list(chosen, width) if whole else explanation_lines(chosen[0]))
