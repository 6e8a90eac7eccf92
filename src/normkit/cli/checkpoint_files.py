"""Checkpoint files: read without running code, written atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from normkit.cli.checkpoint_classes import trusted
from normkit.cli.unreadable import why_unreadable
from normkit.errors import DataError, OptionError, message

__all__ = ["check_target", "read_checkpoint", "write_checkpoint"]


def read_checkpoint(path: Path, trust: Sequence[str] = ()) -> Any:
    """Read the content of a checkpoint, on the CPU.

    Only tensors, plain values and objects of the classes in ``trust`` are read: no other code in
    the file is run.

    Raises:
        DataError: there is no such file, or it holds anything else.
        OptionError: there is no such class to trust.
    """
    try:
        with torch.serialization.safe_globals(trusted(trust)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OptionError:
        raise
    # Whatever a damaged or hostile file makes of the reader: no file may end in a traceback.
    except Exception as error:
        received, fix = why_unreadable(path, error)
        expected = "a checkpoint by torch.save, with tensors and plain values"
        raise DataError(message(expected, received, fix)) from error


def check_target(target: Path, checkpoint: Path, *, force: bool) -> None:
    """Raise before anything is computed if ``target`` cannot be written.

    Raises:
        OptionError: it is the checkpoint itself, exists already, or is in no writable folder.
    """
    folder = target.absolute().parent
    if target.exists() and checkpoint.exists() and target.samefile(checkpoint):
        expected, fix = "another file than the checkpoint itself", "name another file"
    elif target.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        expected = "a file in a folder that exists and is writable"
        fix = "make the folder, or name another file"
    elif target.exists() and not force:
        expected = "a new file: an existing file is not overwritten"
        fix = "name another file, or add --force"
    else:
        return
    raise OptionError(message(expected, str(target), fix))


def write_checkpoint(target: Path, content: Any) -> None:
    """Write a checkpoint atomically: a reader sees the old file or the new one, never a part.

    Raises:
        DataError: it cannot be written, such as to a full disk.
    """
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp lets only the owner read; a checkpoint gets the permissions of the user's mask.
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(target)
    except BaseException as error:
        if name:
            Path(name).unlink(missing_ok=True)
        # torch raises RuntimeError when the disk is full.
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        raise DataError(
            message(
                "room for the whole file",
                f"from {target.absolute().parent}: {error}",
                "free some space, or name another folder",
            )
        ) from error
