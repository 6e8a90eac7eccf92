"""``normkit recalibrate``: a checkpoint with population statistics, from one that lacks them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from normkit.cli.console import (
    INTERRUPTED,
    console,
    errors,
    print_json,
    terminated_like_interrupted,
)
from normkit.errors import OptionError, explain

__all__ = ["recalibrate"]


def recalibrate(
    checkpoint: Annotated[Path, typer.Argument(help="A file by torch.save; it is kept.")],
    model: Annotated[
        str,
        typer.Option(help="package.module:attribute, a module or a function that makes one."),
    ],
    batches: Annotated[
        str,
        typer.Option(help="package.module:attribute, batches or a function that makes them."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; NAME.recalibrated.pt if not given.")
    ] = None,
    samples: Annotated[
        str, typer.Option(help="Stop at so many samples; 'all' for all there are.")
    ] = "10000",
    tolerance: Annotated[
        float | None,
        typer.Option(help="Stop when the worst layer is known to this; 0.01 is one percent."),
    ] = None,
    layerwise: Annotated[
        bool, typer.Option("--layerwise", help="For batches of a few samples; several passes.")
    ] = False,
    key: Annotated[
        str | None, typer.Option(help="Where in the checkpoint, if several parts fit the model.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to run the model, such as cuda.")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Write over a file there is.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for a program to read.")
    ] = False,
) -> None:
    """Replace a checkpoint's running means and variances by those of data under its weights.

    Only they differ in the file written; weights, optimizer and all else are as they were. The
    checkpoint is read as data: no code in it is run. --model and --batches are imported from the
    current directory or the installed packages.
    """
    target = _beside(checkpoint) if out is None else out
    with errors():
        options = {"samples": _number(samples), "tolerance": tolerance, "layerwise": layerwise}
        # A program reads what goes to standard output; what the user's modules print does not.
        quiet = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        try:
            with terminated_like_interrupted(), quiet:
                name, found = _run(checkpoint, target, model, batches, key, device, force, options)
        except KeyboardInterrupt:
            console(stderr=True).print("Stopped; nothing was written.")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json({"path": str(target), "key": name, **found.summary()})
        return
    out_console = console()
    out_console.print(repr(found), soft_wrap=True)
    place = f" (at {name})" if name else ""
    out_console.print(f"Read {checkpoint}{place}, written {target}", soft_wrap=True)


def _run(
    checkpoint: Path,
    target: Path,
    model_name: str,
    batches_name: str,
    key: str | None,
    device_name: str,
    force: bool,
    options: dict[str, Any],
) -> tuple[str, Any]:
    """The part of the checkpoint that was taken, and what was done to it."""
    from torch import nn

    from normkit.cli import checkpoint as parts
    from normkit.cli import checkpoint_files as files
    from normkit.cli.objects import call_or_return, find_object
    from normkit.statistics import recalibrate as recalibrated
    from normkit.statistics.batches import check_batches, moved, prepared

    files.check_target(target, checkpoint, force=force)
    device = _device(device_name)
    content = files.read(checkpoint)
    model = call_or_return(
        find_object(model_name, "--model"),
        lambda found: isinstance(found, nn.Module),
        "a torch.nn.Module",
        "--model",
    )
    place = parts.locate(content, model, key)
    parts.fill(model, place, content)
    batches = call_or_return(
        find_object(batches_name, "--batches"),
        lambda found: isinstance(found, Iterable) and not isinstance(found, type),
        "an iterable of batches, such as a DataLoader",
        "--batches",
    )
    check_batches(batches)
    found = recalibrated(
        model.to(device), prepared(batches, partial(moved, device=device)), **options
    )
    content = parts.exchanged(content, place, model)
    files.check_target(target, checkpoint, force=force)  # it took a while
    files.write(target, content)
    return place.name, found


def _beside(checkpoint: Path) -> Path:
    """``NAME.recalibrated.pt`` for ``NAME.pt``, and likewise with other endings."""
    return checkpoint.parent / f"{checkpoint.stem}.recalibrated{checkpoint.suffix or '.pt'}"


def _number(samples: str) -> int | None:
    if samples == "all":
        return None
    try:
        return int(samples.replace("_", ""))
    except ValueError:
        raise OptionError(
            explain("--samples is a number or 'all'", samples, "leave it out for 10,000")
        ) from None


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # An assertion where torch was built without CUDA.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(
            explain(
                "--device is a device that torch can use here",
                f"{name} ({str(error).splitlines()[0]})",
                "leave it out for the CPU",
            )
        ) from None
    return device
