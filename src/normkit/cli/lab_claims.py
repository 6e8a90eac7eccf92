"""``normkit lab list`` and ``verdicts``: the claims with their cost and their verdicts."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.text import Text

from normkit.cli.console import console, errors, needs_lab, print_json
from normkit.cli.lab_options import (
    STORE,
    WORD_STYLE,
    JsonOption,
    OfClaimsArgument,
    PresetName,
    StoreOption,
)
from normkit.errors import OptionError, message

if TYPE_CHECKING:
    from rich.console import Console

    from normkit.lab.claims.claim import Claim
    from normkit.lab.findings import Finding
    from normkit.lab.runs import Run
    from normkit.lab.store import Store

__all__ = ["list_claims", "nothing_to_judge", "verdicts"]

Row = dict[str, Any]
INDENT = 4


def list_claims(
    claims: OfClaimsArgument = None, store: StoreOption = STORE, as_json: JsonOption = False
) -> None:
    """List the claims: source, data, cost and verdict at each preset."""
    needs_lab()
    with errors(), _if_there(store) as opened:
        rows = _rows(opened, claims)
    if as_json:
        print_json(rows)
        return
    out = console()
    for row in rows:
        _print_claim(out, row)
    out.print(
        "Per preset: verdict (▸ = last preset run), number of runs, training images (millions), "
        "core-minutes if complete. Runs shared by claims count for each. normkit lab tour runs "
        "the tour, in three minutes on two cores; normkit lab run without claim keys those that "
        "are run by default."
    )
    if not store.exists():
        out.print(f"There is no store {store}: nothing has been run into it.", soft_wrap=True)


def _print_claim(out: Console, row: Row) -> None:
    """Print a claim in a few short lines, which fit a terminal of any width."""
    out.print(Text.assemble((f"{row['claim']}  ", "bold"), (row["title"], "bold")))
    about = "; ".join(
        [row["sources"][0], row["data"], *(["run by default"] if row["demo"] else [])]
    )
    out.print(Padding(Text(about, style="dim"), (0, 0, 0, INDENT)))
    for preset, cost in row["cost"].items():
        word = row["verdicts"].get(preset)
        last = row["last"] is not None and row["last"]["preset"] == preset
        line = Text(" " * INDENT).append(f"{preset:<7}").append("▸ " if last else "  ")
        verdict = row["parts"][preset].removesuffix(" parts") if word else "not run"
        line.append(f"{verdict:<17}", WORD_STYLE[word] if word else "dim")
        line.append(f"{cost['runs']:>5,} runs  {cost['images'] / 1e6:>8,.1f} M images")
        if cost["seconds"] is not None:
            line.append(f"  {cost['seconds'] / 60:>7,.1f} core-min")
        out.print(line)
    out.print()


@contextlib.contextmanager
def _if_there(path: Path) -> Iterator[Store | None]:
    """Open the store for reading; None if there is no such file."""
    from normkit.lab.store import Store

    if not path.exists():
        yield None
        return
    with Store(path, read_only=True) as opened:
        yield opened


def _rows(store: Store | None, keys: Sequence[str] | None) -> list[Row]:
    from normkit.lab.claims import registry
    from normkit.lab.claims.claim import PRESETS
    from normkit.lab.data import is_here
    from normkit.lab.judge import judge

    chosen = {claim.key for claim in registry.select(keys, is_here)} if keys else None
    planned = {claim for claim, _ in store.plans()} if store else set()
    claims = [
        claim
        for claim in registry.forms(registry.all_claims().values())
        if (
            claim.key in chosen
            if chosen
            else claim.data == "fashion-mnist" or claim.key in planned or is_here(claim.data)
        )
    ]
    findings: dict[str, dict[str, Finding]] = {}
    if store is not None:
        for preset in PRESETS:
            findings[preset] = {finding.key: finding for finding in judge(store, preset, claims)}
    return [_about_claim(claim, findings, store) for claim in claims]


def _about_claim(
    claim: Claim, findings: Mapping[str, Mapping[str, Finding]], store: Store | None
) -> Row:
    """Return a claim as plain values, with its cost on the full data set."""
    from normkit.lab.claims.claim import Available

    cost = {}
    for preset in claim.presets:
        arms = claim.plan(preset, Available.whole(claim.data))
        finding = findings.get(preset, {}).get(claim.key)
        done = finding is not None and finding.runs == len(finding.records) > 0
        cost[preset] = {
            "runs": len(arms),
            "images": sum(config.images for _, config in arms),
            "seconds": finding.seconds if finding is not None and done else None,
        }
    judged = {
        preset: by_key[claim.key] for preset, by_key in findings.items() if claim.key in by_key
    }
    verdicts = {preset: finding.word for preset, finding in judged.items()}
    last = store.last_preset(claim.key) if store else None
    sentence = findings[last][claim.key].sentence if last in verdicts else ""
    return {
        "claim": claim.key,
        "title": claim.title,
        "statement": claim.statement,
        "sources": [reference.source for reference in claim.sources],
        "data": ", ".join(
            dict.fromkeys(name for at in claim.presets for name in claim.data_sets(at))
        ),
        "demo": claim.demo,
        "cost": cost,
        "verdicts": verdicts,
        "parts": {preset: finding.verdict for preset, finding in judged.items()},
        "last": {"word": verdicts[last], "preset": last, "sentence": sentence}
        if last in verdicts
        else None,
    }


def verdicts(
    claims: OfClaimsArgument = None,
    store: StoreOption = STORE,
    preset: Annotated[PresetName | None, typer.Option(help="Default: the preset last run.")] = None,
    into: Annotated[
        Path | None,
        typer.Option(help="Write the table into this file, between its two marks."),
    ] = None,
    short: Annotated[
        bool, typer.Option("--short", help="Only the claims of the README, with one effect.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the verdicts as a Markdown table, or write it into a README. Trains nothing."""
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
        print_json({"into": str(into) if into else None, "changed": changed, "markdown": text})
    elif into:
        console().print(f"{into}: {'replaced' if changed else 'unchanged'}", soft_wrap=True)
    else:
        print(text)


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
