"""``normkit lab verdicts``: a table of verdicts for a README, or as data."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normkit.cli.console import console, errors, needs_lab, print_json
from normkit.cli.lab_options import STORE, OfClaimsArgument, PresetOption, StoreOption
from normkit.cli.options import Json
from normkit.errors import OptionError, message

if TYPE_CHECKING:
    from normkit.lab.findings import Finding
    from normkit.lab.runs import Run

__all__ = ["nothing_to_judge", "verdicts"]


def verdicts(
    claims: OfClaimsArgument = None,
    store: StoreOption = STORE,
    preset: PresetOption = None,
    into: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the table into this file, between its two marks."),
    ] = None,
    short: Annotated[
        bool,
        typer.Option("--short", metavar="", help="Only the claims of the README, with one effect."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the verdicts as a Markdown table, or write it into a file. Trains nothing."""
    needs_lab()
    with errors():
        from normkit.lab.claims.registry import all_claims, select
        from normkit.lab.judge import Judged, judge_with_runs, last_preset
        from normkit.lab.store import Store
        from normkit.report import markdown

        with Store(store, read_only=True) as opened:
            name = preset.value if preset else last_preset(opened)
            chosen = select(claims) if claims else None
            judged = judge_with_runs(opened, name, chosen) if name else Judged([], ())
        if not judged.findings:
            raise nothing_to_judge(store, name, claims or ())
        findings, runs = judged
        if into:
            _check_planned(findings, str(name))
        caption = markdown.together(findings)
        if not short:
            caption += f"\n\n{_caption(runs, str(name))}"
        else:
            headlines = {claim.key for claim in all_claims().values() if claim.headline}
            findings = [finding for finding in findings if finding.key in headlines]
        text = markdown.table(findings, caption, short=short)
        changed = markdown.put_between(into, text) if into else False
    if as_json:
        target = str(into) if into else None
        print_json({"preset": name, "into": target, "changed": changed,
                    "claims": [_as_data(finding) for finding in findings]})  # fmt: skip
    elif into:
        console().print(f"{into}: {'replaced' if changed else 'unchanged'}", soft_wrap=True)
    else:
        print(text)


def _as_data(finding: Finding) -> dict[str, Any]:
    """Return what the table says of a claim, as plain values."""
    names = ("question", "unit", "effect", "low", "high", "seeds", "word", "smallest", "margin",
             "survives")  # fmt: skip
    return {
        "claim": finding.key,
        "title": finding.title,
        "word": finding.word,
        "verdict": finding.verdict,
        "confirmed": finding.confirmed,
        "parts": finding.parts,
        "runs": finding.runs,
        "planned": len(finding.records),
        "effects": [
            {name: getattr(each, name) for name in names}
            for each in finding.comparisons
            if each.decides
        ],
        "practice": finding.practice,
    }


def nothing_to_judge(store: Path, preset: str | None, claims: Sequence[str] = ()) -> OptionError:
    """Return the error for a store without runs of these claims at this preset."""
    at = f" at preset {preset}" if preset else ""
    again = ["normkit", "lab", "run", *claims, "--store", str(store)]
    again += ["--preset", preset] if preset else []
    return OptionError(
        message(
            "a store in which the claims were run",
            f"{store}, without {', '.join(claims) or 'any'}{at}",
            f"run them: {shlex.join(again)}",
        )
    )


def _check_planned(findings: Sequence[Finding], preset: str) -> None:
    """Raise if this version cannot judge one of the stored plans.

    Raises:
        OptionError: a plan was made by another version.
    """
    stale = [finding.key for finding in findings if finding.stale]
    if stale:
        raise OptionError(
            message(
                "plans of this version of normkit, which can be judged",
                f"stored plans of another version, for {', '.join(stale)}",
                f"plan them again: normkit lab run {' '.join(stale)} --preset {preset}; equal "
                "runs are not repeated",
            )
        )


def _caption(runs: Sequence[Run], preset: str) -> str:
    """Say in one line which runs the numbers come from."""
    from normkit.report.text import duration

    if not runs:
        return f"(`{preset}` preset: no run done yet.)"
    machines = dict.fromkeys(run.machine for run in runs)
    versions = dict.fromkeys(
        f"normkit {run.versions.get('normkit', '?')} and torch {run.versions.get('torch', '?')}"
        for run in runs
    )
    kinds = [run.config.kind for run in runs]
    trained = f"{kinds.count('training')} trainings"
    if timed := kinds.count("timing"):
        trained += f" and {timed} measurements of time"
    spent = duration(sum(run.seconds for run in runs))
    return (
        f"(`{preset}` preset: {trained}, {spent} of one core's time, "
        f"on {'; '.join(machines)} with {'; '.join(versions)}.)"
    )
