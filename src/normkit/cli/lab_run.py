"""``normkit lab run`` and ``lab tour``: train the runs that claims need, judge, report."""

from __future__ import annotations

import contextlib
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
    PresetName,
    ReportOption,
    StoreOption,
    VerboseOption,
    WorkersOption,
)
from normkit.cli.lab_page import as_data, check_report, print_page, print_sentences, write
from normkit.cli.options import Json

if TYPE_CHECKING:
    from normkit.lab.claims.claim import Preset

__all__ = ["run", "tour"]


def run(
    claims: ClaimsArgument = None,
    preset: Annotated[
        PresetName,
        typer.Option(
            help="How much is trained: quick takes minutes a claim and says what is large, full "
            "has more seeds and larger runs, paper is the sources' own scale, for a GPU."
        ),
    ] = PresetName.quick,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="Seeds of each arm, in place of the preset's. Choose it before you know results: "
            "a number chosen by them makes intervals wrong.",
        ),
    ] = None,
    store: StoreOption = STORE,
    workers: WorkersOption = None,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads per worker.")] = 1,
    executor_name: ExecutorOption = ExecutorName.local,
    address: AddressOption = None,
    device: DeviceOption = DeviceName.cpu,
    report: ReportOption = REPORT,
    verbose: VerboseOption = False,
    as_json: Json = False,
) -> None:
    """Put claims to the test: train what the store lacks, judge, write the report.

    On a terminal a board shows each claim with its progress and its verdict. Elsewhere verdicts and
    progress are plain lines.

    Stop it with Ctrl-C, or kill it, at any time: the same command resumes where it stopped.
    """
    _study(
        ["run", *(claims or ()), "--preset", preset.value,
         *(["--seeds", str(seeds)] if seeds else [])],
        claims or (), preset.value,
        store=store, report=report, executor_name=executor_name, address=address,
        workers=workers, threads=threads, device=device, as_json=as_json, seeds=seeds,
        verbose=verbose,
    )  # fmt: skip


def tour(
    store: StoreOption = STORE,
    workers: WorkersOption = None,
    report: ReportOption = REPORT,
    verbose: VerboseOption = False,
    as_json: Json = False,
) -> None:
    """Put five claims to the test in three minutes, on two idle cores.

    The report is there from the first verdict on, and is updated with each.

    Stop it with Ctrl-C, or kill it, at any time: the same command resumes where it stopped.
    """
    _study(
        ["tour"], (), "tour", store=store, report=report, workers=workers, as_json=as_json,
        touring=True, verbose=verbose,
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
    seeds: int | None = None,
    touring: bool = False,
    verbose: bool = False,
) -> None:
    """Carry out a command; with ``touring`` the report is written after each verdict."""
    needs_lab()
    with errors():
        from normkit.cli.lab_progress import carry_out
        from normkit.cli.lab_study import Study
        from normkit.lab import runner
        from normkit.lab.claims.registry import select, with_seeds
        from normkit.lab.data import is_here
        from normkit.lab.judge import judge_with_runs
        from normkit.lab.store import Store as OpenStore

        processes = joined(executor_name, address, workers, threads, device)
        chosen = select(claims, present=is_here, preset=preset)
        if seeds is not None:
            chosen = [with_seeds(claim, seeds) for claim in chosen]
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
                what = f"{_count(len(chosen), 'claim')}, {_count(len(keys), 'run')}"
                out.print(f"{what}, {pool.free} at once. Ctrl-C stops; the same command resumes.")
                study = Study(
                    opened, chosen, preset, keys, workers=pool.free,
                    page=report if touring else None,
                )  # fmt: skip
                summary = carry_out(study, pool, out, verbose=verbose)
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
            with out.status("Writing the report") if out.is_terminal else contextlib.nullcontext():
                judged = judge_with_runs(opened, preset)
                # The time of a command that trained nothing means nothing.
                trained = summary.seconds if summary.finished else None
                path = write(judged, report, preset, trained)
    by_key = {finding.key: finding for finding in judged.findings}
    findings = [by_key[claim.key] for claim in chosen if claim.key in by_key]
    if as_json:
        print_json(as_data(findings, path))
    else:
        if console().is_terminal:  # elsewhere they were printed as they came
            print_sentences(findings)
        print_page(judged.findings, path)
    if summary.failed:
        print_error(f"{len(summary.failed)} runs failed; run the same command to retry them.")
        raise typer.Exit(1)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
