"""Frame of the commands that read checkpoints and write another: fold, merge, recalibrate."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from normkit.cli.console import (
    INTERRUPTED,
    console,
    errors,
    plain_warnings,
    terminated_like_interrupted,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from normkit.cli.checkpoint import StateDictPart

__all__ = ["default_target", "print_written", "rewrite", "users_code", "write_checked"]

T = TypeVar("T")


@contextlib.contextmanager
def users_code(as_json: bool) -> Iterator[None]:
    """Handle errors, warnings and Ctrl-C of a command that runs modules of the user.

    Standard output is for the result: with ``as_json``, what those modules print goes to standard
    error. After Ctrl-C, files are as they were.
    """
    with errors():
        quiet = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        try:
            with terminated_like_interrupted(), quiet, plain_warnings():
                yield
        except KeyboardInterrupt:
            console(stderr=True).print("Stopped; nothing was written.")
            raise typer.Exit(INTERRUPTED) from None


def default_target(checkpoint: Path, word: str) -> Path:
    """Return ``NAME.word.pt`` for ``NAME.pt``, and likewise with other endings.

    >>> default_target(Path("runs/last.ckpt"), "folded").name
    'last.folded.ckpt'
    """
    return checkpoint.parent / f"{checkpoint.stem}.{word}{checkpoint.suffix or '.pt'}"


def rewrite(
    checkpoint: Path,
    target: Path,
    model_name: str,
    change: Callable[[nn.Module, torch.device], T],
    replace: Callable[[Any, StateDictPart, nn.Module], Any],
    *,
    key: str | None,
    trust: Sequence[str],
    device_name: str,
    force: bool,
) -> tuple[str, T]:
    """Load a checkpoint into a model, change the model, and write the checkpoint with the change.

    Args:
        change: called with the model and its device.
        replace: called with the content of the checkpoint, its part that fits, and the model;
            returns the new content.

    Returns:
        The key of the part, and the result of ``change``.

    Raises:
        NormkitError: of the many kinds that a file, a name or the change can fail with.
    """
    from normkit.cli.checkpoint_files import check_target, read_checkpoint
    from normkit.cli.loading import load_content, load_device, load_model

    check_target(target, checkpoint, force=force)
    device = load_device(device_name)
    content = read_checkpoint(checkpoint, trust)
    model = load_model(model_name, "--model")
    part = load_content(model, content, key)
    result = change(model.to(device), device)
    write_checked(target, replace(content, part, model), [checkpoint], force=force)
    return part.name, result


def write_checked(target: Path, content: Any, checkpoints: Sequence[Path], *, force: bool) -> None:
    """Write a checkpoint, if its place is still free: it may have changed since the start.

    Raises:
        OptionError, DataError: see :mod:`normkit.cli.checkpoint_files`.
    """
    from normkit.cli.checkpoint_files import check_target, write_checkpoint

    for checkpoint in checkpoints:
        check_target(target, checkpoint, force=force)
    write_checkpoint(target, content)


def print_written(checkpoint: Path, target: Path, part_key: str) -> None:
    """Say what was read and written."""
    part = f" (at {part_key})" if part_key else ""
    console().print(f"Read {checkpoint}{part}, wrote {target}", soft_wrap=True)
