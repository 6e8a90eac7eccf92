"""Fetch a data set into the cache, from any source.

Whatever is fetched goes into a new folder inside the cache, is checked and read there, and only
then moved, file by file, to its name. An interruption leaves nothing that looks like a whole file,
and two processes that fetch at once have a folder each and end with the same files.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from normkit.errors import DataError
from normkit.lab.data.catalogue import Spec
from normkit.lab.data.reading import UnavailableError, cache_folder, find, read
from normkit.lab.data.split import Dataset

__all__ = ["ORIGIN_FILE", "fetched"]

ORIGIN_FILE = "origin.txt"
"""Beside the files in the cache: where they came from, in one line."""
_DAY = 86_400.0


def fetched(spec: Spec, origin: str, fill: Callable[[Path], None]) -> Dataset:
    """Let ``fill`` put a data set's files into a new folder, check them, move them to the cache.

    Raises:
        UnavailableError: ``fill`` could not, what it brought is damaged, or the cache is read-only.
    """
    folder = cache_folder() / spec.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        # In the cache itself: only within one file system does a move replace at once.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".incoming-") as name:
            incoming = Path(name)
            fill(incoming)
            dataset = read(spec, incoming, origin)
            for _, path in find(spec, incoming):
                path.replace(folder / path.name)
            note = incoming / ORIGIN_FILE
            note.write_text(origin + "\n", encoding="utf-8")
            note.replace(folder / ORIGIN_FILE)
    except DataError as error:
        raise UnavailableError(f"what came is damaged: {error}") from error
    except OSError as error:
        raise UnavailableError(f"cannot write to {folder} ({error}); set NORMKIT_CACHE") from error
    return dataset


def _remove_abandoned(folder: Path) -> None:
    # Left by a process that was killed. A day, so that nobody's running download is meant.
    for old in folder.glob(".incoming-*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _DAY:
                shutil.rmtree(old)
