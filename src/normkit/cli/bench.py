"""``normkit bench``: how fast the layers are on this machine."""

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
    terminated_like_interrupted,
)

if TYPE_CHECKING:
    from normkit.bench.planning import Network

__all__ = ["bench"]


class PresetName(str, enum.Enum):
    """How much is measured."""

    quick = "quick"
    default = "default"
    full = "full"


class AllocatorName(str, enum.Enum):
    """Which setting of the system's allocator is measured."""

    default = "default"
    tuned = "tuned"
    both = "both"


def bench(
    preset: Annotated[
        PresetName, typer.Option(help="Half a minute, four minutes, half an hour.")
    ] = PresetName.default,
    cases: Annotated[
        str | None,
        typer.Option(help="Only cases whose name matches, of all there are; see --list."),
    ] = None,
    norm: Annotated[
        list[str] | None, typer.Option(help="Only bn, gn, ln, in or rms; may be given repeatedly.")
    ] = None,
    allocator: Annotated[
        AllocatorName, typer.Option(help="As the system comes, or keeping large blocks.")
    ] = AllocatorName.both,
    threads: Annotated[
        int | None, typer.Option(min=1, help="torch's threads; torch's own choice if not given.")
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Against torch.compile too, for a few cases."),
    ] = None,
    steps: Annotated[
        bool | None, typer.Option("--steps/--no-steps", help="Whole training steps too.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all results to this file.")
    ] = None,
    stored: Annotated[
        Path | None, typer.Option("--from", help="Show the results in this file; measure nothing.")
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="List the cases and measure nothing.")
    ] = False,
) -> None:
    """Measure the layers against torch.nn, in turn, and against the speed of copying.

    Ctrl-C ends it and shows what is there.
    """
    with errors():
        from normkit.bench import planning, recording
        from normkit.bench.show import print_results
        from normkit.cli.measure import Measurement

        out = console()
        if stored is not None:
            results = recording.read(stored)
            print_results(out, results, recording.figures(results))
            return
        scale = planning.PRESETS[preset.value]
        chosen = planning.choose(preset.value, pattern=cases, norms=norm or ())
        if listing:
            for case in chosen:
                typer.echo(case.name)
            return
        if json_file is not None:
            recording.check_target(json_file)
        names = ("default", "tuned") if allocator is AllocatorName.both else (allocator.value,)
        whole = (bool(scale.steps) and cases is None and not norm) if steps is None else steps
        measurement = Measurement(
            allocators=names,
            threads=threads,
            jobs=planning.case_jobs(
                chosen, scale, compiled=scale.compiled if compiled is None else compiled
            ),
            step_jobs=planning.step_jobs(_networks(), scale, both=preset is PresetName.full),
            step_allocators=_for_steps(scale.steps, names) if whole else [],
            out=out,
        )
        out.print(f"{len(chosen)} cases, about {scale.about} on an idle machine of two cores")
        with terminated_like_interrupted():
            measurement.run()
        if measurement.machine:
            results = recording.document(
                measurement.machine,
                {"preset": preset.value, "cases": cases, "norms": norm or [],
                 "allocators": list(names)},
                measurement.cases,
                measurement.steps,
                date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
                complete=not (measurement.interrupted or measurement.failures),
            )  # fmt: skip
            print_results(out, results, recording.figures(results))
            if json_file is not None:
                recording.write(json_file, results)
                out.print(f"Written to {json_file}", soft_wrap=True)
    for failure in measurement.failures:
        console(stderr=True).print(f"normkit: {failure}", style="bold red", soft_wrap=True)
    if measurement.interrupted:
        out.print("Stopped before all was measured.")
        raise typer.Exit(INTERRUPTED)
    if measurement.failures:
        raise typer.Exit(1)


def _networks() -> list[Network]:
    from normkit.bench.planning import Network

    def network(name: str, shape: tuple[int, ...], **more: Any) -> Network:
        # Named and not imported: benchmarks stand below the lab.
        return Network(name, "normkit.lab.models.forms:form", {"size": shape[-1]}, shape, **more)

    return [
        network("lenet5", (256, 1, 28, 28)),
        network("resnet18", (64, 1, 96, 96), layouts=("contiguous", "channels-last")),
        network("densenet", (64, 1, 96, 96)),
    ]


def _for_steps(usual: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """The allocators for whole steps: those of the preset, or what else was asked for."""
    return [name for name in usual if name in chosen] or [chosen[0]]
