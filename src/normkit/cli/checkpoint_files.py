"""Checkpoint files: read without running code, written whole or not at all."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch

from normkit.errors import DataError, OptionError, explain

__all__ = ["check_target", "read", "write"]


def read(path: Path) -> Any:
    """All that a checkpoint holds, on the CPU.

    Only tensors and plain values are read: no code that a file may carry is run.

    Raises:
        DataError: no such file, or one that cannot be read so.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            explain(
                "a checkpoint is a file by torch.save that holds tensors and plain values only",
                f"{path}, of which torch.load(weights_only=True) says: {said}",
                "name another file; or if it holds more and you trust it, save its state dict "
                "alone: torch.save(torch.load(path, weights_only=False)['state_dict'], "
                "'state.pt'), or .state_dict() where it holds a whole model",
            )
        ) from error


def check_target(target: Path, checkpoint: Path, *, force: bool) -> None:
    """Find out that a file cannot be written before anything is computed.

    Raises:
        OptionError: it is the checkpoint itself, there already, or in no folder to write to.
    """
    folder = target.absolute().parent
    if target.exists() and checkpoint.exists() and target.samefile(checkpoint):
        rule, do = "the checkpoint itself is never written over", "name another file"
    elif target.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        rule = "the result is a file in a folder that exists and can be written"
        do = "make the folder, or name another file"
    elif target.exists() and not force:
        rule, do = "a file that is there is kept", "name another file, or add --force"
    else:
        return
    raise OptionError(explain(rule, str(target), do))


def write(target: Path, content: Any) -> None:
    """Write a checkpoint; a reader sees the old file or the new one, never a part.

    Raises:
        DataError: it could not be written, such as to a full disk.
    """
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp lets nobody else read; a checkpoint is for whom the user's mask says.
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(target)
    except BaseException as error:
        if name:
            Path(name).unlink(missing_ok=True)
        # torch tells of a full disk by a RuntimeError.
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        raise DataError(
            explain(
                "the result is written whole",
                f"of {target.absolute().parent}: {error}",
                "make room, or name another folder",
            )
        ) from error
