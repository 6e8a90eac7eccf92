"""``normkit recalibrate``: replace the running statistics of a checkpoint."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from normkit.cli.console import (
    INTERRUPTED,
    console,
    errors,
    plain_warnings,
    print_json,
    terminated_like_interrupted,
)
from normkit.cli.loading import read_samples
from normkit.cli.options import Device, Key, Trust

__all__ = ["recalibrate"]


def recalibrate(
    checkpoint: Annotated[Path, typer.Argument(help="A file by torch.save; it is not changed.")],
    model: Annotated[
        str,
        typer.Option(help="package.module:attribute, a module or a function that returns one."),
    ],
    batches: Annotated[
        str,
        typer.Option(help="package.module:attribute, batches or a function that returns them."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: NAME.recalibrated.pt.")
    ] = None,
    samples: Annotated[
        str, typer.Option(help="Stop after this many samples, or 'all' to use every batch.")
    ] = "10000",
    tolerance: Annotated[
        float | None,
        typer.Option(help="Stop when the worst layer's relative standard error is below this."),
    ] = None,
    layerwise: Annotated[
        bool,
        typer.Option("--layerwise", help="For batches of a few samples; makes several passes."),
    ] = False,
    key: Key = None,
    trust: Trust = None,
    device: Device = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for a program to read.")
    ] = False,
) -> None:
    """Replace a checkpoint's running means and variances by those of data under its weights.

    Everything else in the new file is as in the checkpoint: weights, optimizer and the rest.

    The checkpoint is read as data: no code in it is run, but that of the classes in --trust.

    --model and --batches are imported from the current directory or the installed packages.
    """
    target = _default_target(checkpoint) if out is None else out
    with errors():
        options = {
            "samples": read_samples(samples),
            "tolerance": tolerance,
            "layerwise": layerwise or None,
        }
        # Standard output is for a program; what the user's modules print goes to standard error.
        quiet = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        try:
            with terminated_like_interrupted(), quiet, plain_warnings():
                part_key, result = _run(
                    checkpoint, target, model, batches, key, trust or (), device, force, options
                )
        except KeyboardInterrupt:
            console(stderr=True).print("Stopped; nothing was written.")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json({"path": str(target), "key": part_key, **result.summary()})
        return
    out_console = console()
    out_console.print(repr(result), soft_wrap=True)
    part = f" (at {part_key})" if part_key else ""
    out_console.print(f"Read {checkpoint}{part}, wrote {target}", soft_wrap=True)


def _run(
    checkpoint: Path,
    target: Path,
    model_name: str,
    batches_name: str,
    key: str | None,
    trust: Sequence[str],
    device_name: str,
    force: bool,
    options: dict[str, Any],
) -> tuple[str, Any]:
    """Write the new checkpoint; return the key of the recalibrated part, and the result."""
    from normkit.cli.checkpoint_entries import replace_stats
    from normkit.cli.checkpoint_files import check_target, read_checkpoint, write_checkpoint
    from normkit.cli.loading import load_batches, load_content, load_device, load_model
    from normkit.statistics import recalibrate as recalibrate_model

    check_target(target, checkpoint, force=force)
    device = load_device(device_name)
    content = read_checkpoint(checkpoint, trust)
    model = load_model(model_name, "--model")
    part = load_content(model, content, key)
    batches = load_batches(batches_name, "--batches", device)
    result = recalibrate_model(model.to(device), batches, **options)
    content = replace_stats(content, part, model)
    check_target(target, checkpoint, force=force)  # which may have changed since
    write_checkpoint(target, content)
    return part.name, result


def _default_target(checkpoint: Path) -> Path:
    """Return ``NAME.recalibrated.pt`` for ``NAME.pt``, and likewise with other endings."""
    return checkpoint.parent / f"{checkpoint.stem}.recalibrated{checkpoint.suffix or '.pt'}"
