"""``normkit doctor``: say what is wrong with a model's normalization, and mend it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normkit.cli.console import console, errors, needs, print_json
from normkit.cli.options import Device, Json, Key, Trust
from normkit.cli.rewriting import users_code
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
        typer.Argument(
            metavar="MODULE:NAME",
            help="The model, such as train:model for `model` in train.py; or a function that makes "
            "it.",
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Training batches, such as train:loader: examine the running statistics too.",
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Evaluation batches with labels: measure what mending brings.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File by torch.save to load into the model.")
    ] = None,
    key: Key = None,
    trust: Trust = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME", help="The optimizer, or a function that makes it of the model."
        ),
    ] = None,
    samples: Annotated[
        str, typer.Option(metavar="N", help="Samples to read of each, at most; or 'all'.")
    ] = "10000",
    forward: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Function of the model and a batch, where model(inputs) is not how it is called.",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Function of the output and a batch that returns a loss: score by it.",
        ),
    ] = None,
    device: Device = "cpu",
    mend: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Mend what a checkpoint can hold, and write it to this new file."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Overwrite existing files.")
    ] = False,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page.")] = None,
    sarif: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write SARIF 2.1.0, for code review.")
    ] = None,
    fail_on: Annotated[
        str,
        typer.Option(
            metavar="LEVEL",
            help="Exit with 1 at a finding so severe: error, warning, note or never.",
        ),
    ] = "error",
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Explain a rule, such as NK104; 'all' lists them. Runs nothing else.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is wrong with a model's normalization, and what mending it brings.

    normkit doctor train:model --train train:loader --test train:test_loader

    examines `model` in the train.py of this folder. The model alone takes a second; with --train
    its running statistics are examined, and with --test what mending brings is measured: it is
    tried on the same samples, and undone.

    Exit codes: 1 at a finding as severe as --fail-on that was not mended; else 0. 2 if an option or
    a file is wrong; 130 if interrupted.
    """
    with errors():
        if explain is not None:
            _explain(explain, as_json)
            return
        request = _request(locals())
        with users_code(as_json):
            outcome = _run(request)
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
