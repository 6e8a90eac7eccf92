"""Open a store for reading, without changing the file or its folder.

A reading connection takes part in the write-ahead mode of a store that others write to, and sees
their commits. SQLite would leave traces unless the file is opened according to its state:

* a log with records in it (a run is going on, or was killed): SQLite's ``mode=ro``. A connection
  that may write would move the log into the file when it closes;
* no log: a connection that may write but is set to ``query_only``. One in ``mode=ro`` would leave
  an empty log and its index beside the file, which it may create but not delete;
* no log, and a file or folder that may not be written: ``immutable=1``, which makes nothing;
* a log, and a folder in which its index cannot be made: a copy of both, read into memory.

A store with an older schema is read into memory and brought up to date there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

from normkit.errors import StoreError, message
from normkit.lab import schema
from normkit.lab.schema import check, guarded, log_of, migrate

__all__ = ["BUSY_SECONDS", "connect", "must_exist", "open_reading"]

BUSY_SECONDS = 30.0


def open_reading(path: Path) -> sqlite3.Connection:
    """Open a sound store file for reading.

    Raises:
        StoreError: missing, empty, not ours, damaged, from a newer normkit, or not readable.
    """
    must_exist(path)
    if not os.access(path, os.R_OK):
        raise StoreError(
            message(
                "a store that can be read",
                f"{path}, which this user may not read",
                f"change its permissions (chmod u+r {path.name}) or name another with --store",
            )
        )
    connection = connect(path)
    try:
        with guarded(path):
            check(connection, path, pages=True)
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                raise _empty(path)
            if version < len(schema.MIGRATIONS):
                connection = _into_memory(connection)
                migrate(connection)
            connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    connection.row_factory = sqlite3.Row
    return connection


def must_exist(path: Path) -> None:
    """Raise if there is no store."""
    if not path.is_file():
        raise StoreError(
            message(
                "an existing store",
                f"no file {path}",
                "create it with: normkit lab run, or name the right one with --store",
            )
        )


def connect(path: Path) -> sqlite3.Connection:
    """Connect to an existing file without changing it or its folder."""
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)
    with guarded(path):
        if log_of(path) is None:
            return _open(path, "mode=rw" if writable else "mode=ro&immutable=1")
        connection = _open(path, "mode=ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            if writable:
                raise
            return _copied(path)
        except BaseException:
            connection.close()
            raise
        return connection


def _open(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?{how}", uri=True, timeout=BUSY_SECONDS, isolation_level=None
    )
    connection.execute("PRAGMA query_only = ON")
    return connection


def _copied(path: Path) -> sqlite3.Connection:
    """Read the store from a copy; nobody writes to it, or its log would have an index."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "store.sqlite"
        shutil.copyfile(path, copy)
        log = log_of(path)
        if log is not None:
            shutil.copyfile(log, copy.with_name(copy.name + "-wal"))
        return _into_memory(sqlite3.connect(copy, isolation_level=None))


def _into_memory(connection: sqlite3.Connection) -> sqlite3.Connection:
    memory = sqlite3.connect(":memory:", isolation_level=None)
    with contextlib.closing(connection):
        connection.backup(memory)
    return memory


def _empty(path: Path) -> StoreError:
    log = path.name + "-wal"
    return StoreError(
        message(
            "a store that holds records",
            f"{path}, without any",
            f"fill it with: normkit lab run --store {path}; if this is a copy, copy {log} with "
            "it, which holds the newest records of a run in progress",
        )
    )
