"""``normkit lab run`` and ``lab tour``: train the runs that claims need, judge, report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normkit.cli.console import (
    INTERRUPTED,
    console,
    errors,
    needs_lab,
    print_error,
    print_json,
    terminated_like_interrupted,
)
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
    ClaimsArgument,
    JsonOption,
    PresetName,
    ReportOption,
    StoreOption,
    WorkersOption,
)
from normkit.cli.lab_page import as_data, check_report, print_findings, print_page, write

if TYPE_CHECKING:
    from normkit.lab.claims.claim import Preset

__all__ = ["run", "tour"]


def run(
    claims: ClaimsArgument = None,
    preset: Annotated[PresetName, typer.Option(help="Amount of training.")] = PresetName.quick,
    store: StoreOption = STORE,
    workers: WorkersOption = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads per worker.")] = 1,
    executor_name: ExecutorOption = ExecutorName.local,
    address: AddressOption = None,
    device: DeviceOption = DeviceName.cpu,
    report: ReportOption = REPORT,
    as_json: JsonOption = False,
) -> None:
    """Train the runs that claims need and the store lacks, judge the claims, write the report.

    Stop it with Ctrl-C, or kill it, at any time: the same command resumes where it stopped.
    """
    _study(
        ["run", *(claims or ()), "--preset", preset.value], claims or (), preset.value,
        store=store, report=report, executor_name=executor_name, address=address,
        workers=workers, threads=threads, device=device, as_json=as_json,
    )  # fmt: skip


def tour(
    store: StoreOption = STORE,
    workers: WorkersOption = None,
    report: ReportOption = REPORT,
    as_json: JsonOption = False,
) -> None:
    """Test five claims in three minutes on two cores; print each verdict as its last run ends.

    The report is updated after each verdict.

    Stop it with Ctrl-C, or kill it, at any time: the same command resumes where it stopped.
    """
    _study(
        ["tour"], (), "tour", store=store, report=report, workers=workers, as_json=as_json,
        touring=True,
    )  # fmt: skip


def _study(
    command: Sequence[str],
    claims: Sequence[str],
    preset: Preset,
    *,
    store: Path,
    report: Path,
    workers: int | None,
    threads: int = 1,
    executor_name: ExecutorName = ExecutorName.local,
    address: str | None = None,
    device: DeviceName = DeviceName.cpu,
    as_json: bool,
    touring: bool = False,
) -> None:
    """Carry out a command; ``touring`` tells verdicts as they come in place of runs."""
    needs_lab()
    with errors():
        from normkit.cli.lab_progress import carry_out
        from normkit.cli.lab_tour import Tour
        from normkit.lab import runner
        from normkit.lab.claims.registry import select
        from normkit.lab.data import is_here
        from normkit.lab.judge import judge_with_runs
        from normkit.lab.store import Store as OpenStore

        processes = joined(executor_name, address, workers, threads, device)
        chosen = select(claims, present=is_here, preset=preset)
        # Fail on wrong options before anything is trained.
        check_report(report, store)
        datasets = runner.datasets(chosen, preset, progress=True)
        with OpenStore(store) as opened, terminated_like_interrupted():
            keys = runner.plan(opened, chosen, preset, datasets)
            out = console(stderr=as_json)
            for dataset in datasets.values():
                sizes = f"{len(dataset.train.labels):,} + {len(dataset.test.labels):,} images"
                out.print(f"Data: {dataset.title}, {sizes}, from {dataset.origin}", soft_wrap=True)
            with executor(
                executor_name, store, datasets, address=address, workers=workers, threads=threads,
                device=device, processes=processes,
            ) as pool:  # fmt: skip
                guide = Tour(opened, chosen, report, out) if touring else None
                summary = carry_out(opened, keys, pool, out, guide)
            if summary.interrupted:
                again = ["normkit", "lab", *command]
                again += ["--store", str(store), "--report", str(report)]
                again += options(executor_name, address, workers, threads, device)
                under = ", under torchrun as before" if processes else ""
                out.print(
                    f"Stopped. Everything recorded is kept in {store}. To resume{under}: "
                    f"{shlex.join(again)}",
                    soft_wrap=True,
                )
                raise typer.Exit(INTERRUPTED)
            judged = judge_with_runs(opened, preset)
        # The time of a command that trained nothing means nothing.
        trained = summary.seconds if summary.finished else None
        path = write(judged, report, preset, trained)
    by_key = {finding.key: finding for finding in judged.findings}
    findings = [by_key[claim.key] for claim in chosen if claim.key in by_key]
    if as_json:
        print_json(as_data(findings, path))
    else:
        if not touring:
            print_findings(findings)
        print_page(judged.findings, path)
    if summary.failed:
        print_error(f"{len(summary.failed)} runs failed; run the same command to retry them.")
        raise typer.Exit(1)
