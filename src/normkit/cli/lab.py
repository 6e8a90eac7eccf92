"""``normkit lab``: train the runs that claims need, judge the claims, report; other commands."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from normkit.cli.console import (
    INTERRUPTED,
    console,
    errors,
    needs_lab,
    print_error,
    print_json,
    terminated_like_interrupted,
)
from normkit.cli.lab_claims import list_claims, nothing_to_judge, verdicts
from normkit.cli.lab_executors import (
    AddressOption,
    DeviceName,
    DeviceOption,
    ExecutorName,
    ExecutorOption,
    executor,
    joined,
    options,
)
from normkit.cli.lab_options import (
    REPORT,
    STORE,
    WORD_STYLE,
    ClaimsArgument,
    JsonOption,
    OfClaimsArgument,
    PresetName,
    StoreOption,
)
from normkit.cli.lab_salvage import salvage
from normkit.cli.lab_sharing import compare, export, tensorboard
from normkit.errors import OptionError, message

if TYPE_CHECKING:
    from normkit.lab.claims.claim import Preset
    from normkit.lab.findings import Finding
    from normkit.lab.judge import Judged
    from normkit.lab.runs import Run

__all__ = ["app"]

app = typer.Typer(help="Test the claims about normalization.", no_args_is_help=True)

app.command("list")(list_claims)
for command in (verdicts, export, tensorboard, compare, salvage):
    app.command()(command)


@app.command()
def run(
    claims: ClaimsArgument = None,
    preset: Annotated[PresetName, typer.Option(help="Amount of training.")] = PresetName.quick,
    store: StoreOption = STORE,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of runs at once. Default: one per core."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads per worker.")] = 1,
    executor_name: ExecutorOption = ExecutorName.local,
    address: AddressOption = None,
    device: DeviceOption = DeviceName.cpu,
    report: Annotated[Path, typer.Option(help="Where to write the report.")] = REPORT,
    as_json: JsonOption = False,
) -> None:
    """Train the runs that claims need and the store lacks, judge the claims, write the report.

    Stop it with Ctrl-C, or kill it, at any time: the same command resumes where it stopped.
    """
    needs_lab()
    with errors():
        from normkit.cli.lab_progress import carry_out
        from normkit.lab import runner
        from normkit.lab.claims.registry import select
        from normkit.lab.data import is_here
        from normkit.lab.judge import judge_with_runs
        from normkit.lab.store import Store as OpenStore

        processes = joined(executor_name, address, workers, threads, device)
        chosen = select(claims or (), present=is_here)
        name: Preset = preset.value
        # Fail on wrong options before anything is trained.
        _check_report(report, store)
        datasets = runner.datasets(chosen, name, progress=True)
        with OpenStore(store) as opened, terminated_like_interrupted():
            keys = runner.plan(opened, chosen, name, datasets)
            out = console(stderr=as_json)
            for dataset in datasets.values():
                sizes = f"{len(dataset.train.labels):,} + {len(dataset.test.labels):,} images"
                out.print(f"Data: {dataset.title}, {sizes}, from {dataset.origin}", soft_wrap=True)
            with executor(
                executor_name, store, datasets, address=address, workers=workers, threads=threads,
                device=device, processes=processes,
            ) as pool:  # fmt: skip
                summary = carry_out(opened, keys, pool, out)
            if summary.interrupted:
                again = ["normkit", "lab", "run", *(claims or ()), "--preset", name]
                again += ["--store", str(store), "--report", str(report)]
                again += options(executor_name, address, workers, threads, device)
                under = ", under torchrun as before" if processes else ""
                out.print(
                    f"Stopped. Everything recorded is kept in {store}. To resume{under}: "
                    f"{shlex.join(again)}",
                    soft_wrap=True,
                )
                raise typer.Exit(INTERRUPTED)
            judged = judge_with_runs(opened, name)
        # The time of a command that trained nothing means nothing.
        trained = summary.seconds if summary.finished else None
        path = _write(judged, report, name, trained)
    by_key = {finding.key: finding for finding in judged.findings}
    findings = [by_key[claim.key] for claim in chosen if claim.key in by_key]
    if as_json:
        print_json(_as_data(findings, path))
    else:
        _print(findings, path, judged.findings)
    if summary.failed:
        print_error(f"{len(summary.failed)} runs failed; run the same command to retry them.")
        raise typer.Exit(1)


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

        _check_report(out, store)
        with OpenStore(store, read_only=True) as opened:
            name = preset.value if preset else last_preset(opened)
            chosen = select(claims, present=is_here) if claims else None
            judged = judge_with_runs(opened, name, chosen) if name else Judged([], ())
        if name is None or not judged.findings:
            raise nothing_to_judge(store, name, claims or ())
        path = _write(judged, out, name, None)
    if as_json:
        print_json(_as_data(judged.findings, path))
    else:
        _print(judged.findings, path, judged.findings)


def _check_report(report: Path, store: Path) -> None:
    """Raise if the report cannot be written, or would overwrite the store."""
    from normkit.report import check_target

    if report.resolve() == store.resolve():
        raise OptionError(
            message(
                "the report and the store to be two files",
                f"{report} for both",
                "name another file with --report (lab run) or --out (lab report)",
            )
        )
    check_target(report)


def _write(judged: Judged, path: Path, preset: str, seconds: float | None) -> Path:
    from normkit import report as page
    from normkit.lab import machine
    from normkit.report.text import duration

    findings, runs = judged
    about = {
        "preset": preset,
        "trained on": "; ".join(dict.fromkeys(run.machine for run in runs)) or machine.summary(),
        **_versions(runs),
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    if seconds is not None:
        about["total time"] = duration(seconds)
    if any(record.get("edition") == "subset" for finding in findings for record in finding.records):
        about["notice"] = (
            "Made with the small subset of the data that normkit ships, because the full data set "
            "was not available. Fetch it with: normkit data fetch"
        )
    return page.write(findings, path, about=about)


def _versions(runs: Sequence[Run]) -> dict[str, str]:
    """Return the versions that the runs were computed with, or this process's if there are none."""
    from normkit.lab import machine

    if not runs:
        return machine.versions()
    names = dict.fromkeys(name for run in runs for name in run.versions)
    return {
        name: "; ".join(dict.fromkeys(run.versions.get(name, "unknown") for run in runs))
        for name in names
    }


def _as_data(findings: list[Finding], path: Path) -> dict[str, Any]:
    import dataclasses

    return {
        "report": str(path),
        "findings": [
            {
                name: value
                for name, value in dataclasses.asdict(finding).items()
                if name not in ("charts", "records")
            }
            for finding in findings
        ],
    }


def _print(findings: list[Finding], path: Path, page: list[Finding]) -> None:
    """Print these findings, and what holds of all on the page together."""
    from normkit.report.markdown import together

    table = Table("claim", "verdict", "finding", "runs", show_lines=True)
    for finding in findings:
        table.add_row(
            finding.key,
            Text(finding.verdict, style=WORD_STYLE[finding.word]),
            finding.sentence,
            str(finding.runs),
        )
    out = console()
    out.print(table)
    out.print(together(page), soft_wrap=True)
    out.print(f"Report: {path}", soft_wrap=True)
