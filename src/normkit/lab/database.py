"""Open the file behind the store for writing.

SQLite in write-ahead mode: several processes read and write at once, and what is committed
outlives a process that is killed. An older schema is brought up to date in one transaction; a newer
one, a foreign file and a damaged one are refused and left untouched, which is why a file is looked
at through a reading connection before one that writes opens it: in write-ahead mode the latter
moves the log into the file when it closes, whatever was in them.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from normkit.errors import StoreError, message
from normkit.lab import schema
from normkit.lab.read_only import BUSY_SECONDS, connect, must_exist
from normkit.lab.schema import guarded, log_of, migrate, transaction

__all__ = ["guarded", "open_database", "transaction"]


def open_database(path: Path, *, create: bool = True, check: bool = True) -> sqlite3.Connection:
    """Open a store file for writing, create it if ``create``, migrate its schema.

    ``check`` looks through all pages for damage; workers that open a file which their parent
    has just checked leave it out.

    Raises:
        StoreError: missing (and not ``create``), not ours, damaged, from a newer normkit, or in a
            folder that cannot be written.
    """
    if not create:
        must_exist(path)
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise StoreError(
            message(
                "a store that can be read and written",
                f"{path}, which this user may not write",
                f"change its permissions (chmod u+rw {path.name}) or name another with --store",
            )
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            message(
                "a folder for the store that exists or can be created",
                f"{path.parent}: {error}",
                "name another file with --store",
            )
        ) from error
    if check:
        _look(path)
    with guarded(path):
        # Autocommit: transactions are begun and ended where the code says so.
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        with guarded(path):
            schema.check(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            # In write-ahead mode NORMAL loses nothing when a process dies, only (some of the last
            # commits) when the power does, and never the file's soundness.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            migrate(connection)
    except BaseException:
        connection.close()
        raise
    connection.row_factory = sqlite3.Row
    return connection


def _look(path: Path) -> None:
    """Raise if the file must not be touched by a connection that writes."""
    size = path.stat().st_size if path.is_file() else 0
    log = log_of(path)
    if size == 0 and log:
        # SQLite takes the file for a new one, and deletes the log.
        raise StoreError(
            message(
                "the store that its write-ahead log belongs to",
                f"{log} with records in it, and {path} empty or missing",
                f"restore the file {path.name} that the log belongs to, or move the log away",
            )
        )
    if size:
        with contextlib.closing(connect(path)) as connection, guarded(path):
            schema.check(connection, path, pages=True)
