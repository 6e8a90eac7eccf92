"""``normkit bench``: measure the layers' speed on this machine."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normkit.cli.console import (
    INTERRUPTED,
    console,
    errors,
    print_error,
    print_json,
    terminated_like_interrupted,
)
from normkit.cli.options import Json

if TYPE_CHECKING:
    from normkit.bench.planning import Network

__all__ = ["bench"]


class PresetName(str, enum.Enum):
    """Extent of the benchmark."""

    quick = "quick"
    default = "default"
    full = "full"


class AllocatorName(str, enum.Enum):
    """Setting of the system's memory allocator."""

    default = "default"
    tuned = "tuned"
    both = "both"


def bench(
    preset: Annotated[
        PresetName,
        typer.Option(
            help="Cases to measure: quick (half a minute), default (four minutes), "
            "full (half an hour)."
        ),
    ] = PresetName.default,
    cases: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Measure the cases whose name matches this pattern, of all there are; see --list.",
        ),
    ] = None,
    norm: Annotated[
        list[str] | None,
        typer.Option(metavar="NORM", help="Measure only bn, gn, ln, in or rms; repeatable."),
    ] = None,
    allocator: Annotated[
        AllocatorName,
        typer.Option(help="Memory allocator: the system's default, or tuned to keep large blocks."),
    ] = AllocatorName.both,
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Threads of torch. Default: torch's choice."),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            metavar="",
            help="Compare with torch.compile too, in a few cases.",
        ),
    ] = None,
    steps: Annotated[
        bool | None,
        typer.Option("--steps/--no-steps", metavar="", help="Measure whole training steps too."),
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write all results to this file, for --from."),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Print the results in this file; measure nothing."
        ),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", metavar="", help="List the cases; measure nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how fast normkit's layers are here, beside torch.nn's, and what to do for speed.

    Ctrl-C stops and prints the results so far.
    """
    with errors():
        from normkit.bench import planning, results_file
        from normkit.bench.terminal import print_results
        from normkit.cli.bench_run import Measurement

        out = console(stderr=as_json)

        def show(results: dict[str, Any]) -> None:
            if as_json:
                print_json(results)
            else:
                print_results(out, results, results_file.figures(results))

        if from_file is not None:
            show(results_file.read(from_file))
            return
        extent = planning.PRESETS[preset.value]
        selected = planning.select_cases(preset.value, pattern=cases, norms=norm or ())
        if listing:
            listed = [case.name for case in selected]
            print_json(listed) if as_json else typer.echo("\n".join(listed))
            return
        if out_file is not None:
            results_file.check_target(out_file)
        names = ("default", "tuned") if allocator is AllocatorName.both else (allocator.value,)
        with_steps = (bool(extent.steps) and cases is None and not norm) if steps is None else steps
        measurement = Measurement(
            allocators=names,
            threads=threads,
            jobs=planning.case_jobs(
                selected, extent, compiled=extent.compiled if compiled is None else compiled
            ),
            step_jobs=planning.step_jobs(_networks(), extent, both=preset is PresetName.full),
            step_allocators=_step_allocators(extent.steps, names) if with_steps else [],
            out=out,
        )
        out.print(f"{len(selected)} cases; {extent.duration} on an idle machine with two cores")
        with terminated_like_interrupted():
            measurement.run()
        if measurement.machine:
            results = results_file.document(
                measurement.machine,
                {"preset": preset.value, "cases": cases, "norms": norm or [],
                 "allocators": list(names)},
                measurement.cases,
                measurement.steps,
                date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
                complete=not (measurement.interrupted or measurement.failures),
            )  # fmt: skip
            show(results)
            if out_file is not None:
                results_file.write(out_file, results)
                out.print(f"Results written to {out_file}", soft_wrap=True)
    for failure in measurement.failures:
        print_error(failure)
    if measurement.interrupted:
        out.print("Stopped before all cases were measured.")
        raise typer.Exit(INTERRUPTED)
    if measurement.failures:
        raise typer.Exit(1)


def _networks() -> list[Network]:
    from normkit.bench.planning import Network

    def network(name: str, shape: tuple[int, ...], **options: Any) -> Network:
        # By name: the benchmarks must not import the lab.
        return Network(name, "normkit.lab.models.forms:form", {"size": shape[-1]}, shape, **options)

    return [
        network("lenet5", (256, 1, 28, 28)),
        network("resnet18", (64, 1, 96, 96), layouts=("contiguous", "channels-last")),
        network("densenet", (64, 1, 96, 96)),
    ]


def _step_allocators(preset: Sequence[str], selected: Sequence[str]) -> list[str]:
    """Return the selected allocators that the preset measures steps with, or the first."""
    return [name for name in preset if name in selected] or [selected[0]]
