"""``normkit fold``: fold batch normalization of a checkpoint into the layers around it."""

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
from normkit.cli.options import Device, Key, Trust

__all__ = ["fold"]


def fold(
    checkpoint: Annotated[Path, typer.Argument(help="A file by torch.save; it is not changed.")],
    model: Annotated[
        str,
        typer.Option(help="package.module:attribute, a module or a function that returns one."),
    ],
    example: Annotated[
        str | None,
        typer.Option(help="package.module:attribute, a batch or a function that returns one."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Shape of random numbers in place of an example, such as 1,3,224,224."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "--output", help="File to write. Default: NAME.folded.pt."),
    ] = None,
    key: Key = None,
    trust: Trust = None,
    device: Device = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for a program to read.")
    ] = False,
) -> None:
    """Fold batch normalization of a checkpoint into the convolutions around it, for evaluation.

    The example is run once to find what follows what; each fold is checked, and the whole model.

    The new file holds the folded weights in place of the old ones; all else is as it was. Load
    it with nk.load_folded(model, state_dict) into a model that was built as before.

    --model and --example are imported from the current directory or the installed packages. The
    checkpoint is read as data: no code in it is run, but that of the classes in --trust.
    """
    target = _default_target(checkpoint) if out is None else out
    with errors():
        # Standard output is for a program; what the user's modules print goes to standard error.
        quiet = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        try:
            with terminated_like_interrupted(), quiet, plain_warnings():
                part_key, handle = _run(
                    checkpoint, target, model, example, shape, key, trust or (), device, force
                )
        except KeyboardInterrupt:
            console(stderr=True).print("Stopped; nothing was written.")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json({
            "path": str(target),
            "key": part_key,
            "folded": [{"name": row.name, "note": row.note} for row in handle.changed],
            "skipped": [{"name": row.name, "why": row.why} for row in handle.skipped],
        })  # fmt: skip
        return
    out_console = console()
    out_console.print(repr(handle), soft_wrap=True, markup=False)
    part = f" (at {part_key})" if part_key else ""
    out_console.print(f"Read {checkpoint}{part}, wrote {target}", soft_wrap=True)


def _run(
    checkpoint: Path,
    target: Path,
    model_name: str,
    example_name: str | None,
    shape: str | None,
    key: str | None,
    trust: Sequence[str],
    device_name: str,
    force: bool,
) -> tuple[str, Any]:
    """Write the new checkpoint; return the key of the folded part, and the handle."""
    from normkit.cli.checkpoint_files import check_target, read_checkpoint, write_checkpoint
    from normkit.cli.checkpoint_state import replace_state
    from normkit.cli.loading import load_content, load_device, load_example, load_model
    from normkit.errors import OptionError, message
    from normkit.surgery import fold as fold_model

    check_target(target, checkpoint, force=force)
    device = load_device(device_name)
    batch = load_example(example_name, shape, device)
    content = read_checkpoint(checkpoint, trust)
    model = load_model(model_name, "--model")
    part = load_content(model, content, key)
    handle = fold_model(model.to(device).eval(), batch)
    if not handle.changed:
        raise OptionError(message("a layer that can be folded", repr(handle), "nothing is to be "
                                  "written: use the checkpoint as it is"))  # fmt: skip
    content = replace_state(content, part, model)
    check_target(target, checkpoint, force=force)  # which may have changed since
    write_checkpoint(target, content)
    return part.name, handle


def _default_target(checkpoint: Path) -> Path:
    """Return ``NAME.folded.pt`` for ``NAME.pt``, and likewise with other endings."""
    return checkpoint.parent / f"{checkpoint.stem}.folded{checkpoint.suffix or '.pt'}"
