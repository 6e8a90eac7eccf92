"""Checkpoint files: read without running code, written atomically."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch

from normkit.errors import DataError, OptionError, message

__all__ = ["check_target", "read_checkpoint", "write_checkpoint"]


def read_checkpoint(path: Path) -> Any:
    """Read the content of a checkpoint, on the CPU.

    Only tensors and plain values are read: no code in the file is run.

    Raises:
        DataError: there is no such file, or it holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(
            message("an existing checkpoint", f"no file {path}", "name another file")
        ) from error
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            message(
                "a file by torch.save with tensors and plain values only",
                f"{path}, which torch.load(weights_only=True) refuses: {reason}",
                "name another file; or if it holds more and you trust it, save its state dict "
                "alone: torch.save(torch.load(path, weights_only=False)['state_dict'], "
                "'state.pt'), or .state_dict() where it holds a whole model",
            )
        ) from error


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
