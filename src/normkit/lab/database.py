"""The file behind the store: schema, opening, and errors that say what to do.

SQLite in write-ahead mode: several processes read and write at once, and what is committed
outlives a process that is killed. ``application_id`` marks the file as ours and ``user_version``
counts its schema. An older schema is brought up to date in one transaction; a newer one, a
foreign file and a damaged one are refused and left untouched.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from normkit.errors import StoreError, explain

__all__ = ["APPLICATION_ID", "guarded", "open_database", "transaction"]

APPLICATION_ID = 0x6E6B6C62  # "nklb"
BUSY_SECONDS = 30.0

# One entry per schema version: how to come there from the version before. Never edit an entry
# that was released; append one.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        config TEXT NOT NULL,
        seed INTEGER NOT NULL,
        steps INTEGER NOT NULL,
        step INTEGER NOT NULL DEFAULT 0,
        seconds REAL NOT NULL DEFAULT 0,
        status TEXT NOT NULL DEFAULT 'waiting'
            CHECK (status IN ('waiting', 'running', 'done', 'diverged', 'failed')),
        diverged_step INTEGER,
        error TEXT NOT NULL DEFAULT '',
        versions TEXT NOT NULL DEFAULT '{}',
        machine TEXT NOT NULL DEFAULT '',
        created REAL NOT NULL,
        finished REAL,
        owner TEXT NOT NULL DEFAULT '',
        host TEXT NOT NULL DEFAULT '',
        pid INTEGER NOT NULL DEFAULT 0,
        beat REAL NOT NULL DEFAULT 0
    );
    CREATE TABLE metrics (
        run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        step INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        value REAL,
        PRIMARY KEY (run, name, step)
    ) WITHOUT ROWID;
    CREATE TABLE vectors (
        run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        step INTEGER NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (run, name, step)
    ) WITHOUT ROWID;
    CREATE TABLE checkpoints (
        run INTEGER PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
        step INTEGER NOT NULL,
        state BLOB NOT NULL
    );
    CREATE TABLE plans (
        claim TEXT NOT NULL,
        preset TEXT NOT NULL,
        position INTEGER NOT NULL,
        arm TEXT NOT NULL,
        run INTEGER NOT NULL REFERENCES runs (id),
        PRIMARY KEY (claim, preset, position)
    ) WITHOUT ROWID;
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    """,
)


@contextlib.contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into a :class:`StoreError` that names the file and the way out."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StoreError(
            explain(
                "the store must be a file that can be read and written",
                f"{path}: {error}",
                "check the folder, its permissions, free space, and whether another program "
                "holds the file; then run the same command again",
            )
        ) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(
        explain(
            "the store must be a sound SQLite file",
            f"{path}: {what}",
            "nothing was changed; name another store with --store, or move this file away and "
            f"save what is readable with: sqlite3 {path.name} .recover",
        )
    )


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One write transaction: all of it or nothing.

    ``BEGIN IMMEDIATE`` takes the write lock at once. A transaction that reads first and asks for
    the lock later can be refused without waiting, whatever the busy timeout.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def open_database(path: Path, *, create: bool = True, check: bool = True) -> sqlite3.Connection:
    """Open a store file, make it if ``create``, bring its schema up to date.

    ``check`` looks through all pages for damage; workers that open a file which their parent has
    just checked leave it out.

    Raises:
        StoreError: missing (and not ``create``), not ours, damaged, from a newer normkit, or in a
            folder that cannot be written.
    """
    if not create and not path.is_file():
        raise StoreError(
            explain(
                "the store must exist",
                f"no file {path}",
                "make one with: normkit lab run, or name the right one with --store",
            )
        )
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise StoreError(
            explain(
                "the store must be a file that can be read and written",
                f"{path}, which this user may not write",
                f"change its permissions (chmod u+rw {path.name}) or name another with --store",
            )
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            explain(
                "the store's folder must be one that can be made",
                f"{path.parent}: {error}",
                "name another file with --store",
            )
        ) from error
    with guarded(path):
        # Autocommit: transactions are begun and ended where the code says so.
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        with guarded(path):
            _check(connection, path, thorough=check)
            connection.execute("PRAGMA journal_mode = WAL")
            # In write-ahead mode NORMAL loses nothing when a process dies, only (some of the last
            # commits) when the power does, and never the file's soundness.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(connection)
    except BaseException:
        connection.close()
        raise
    connection.row_factory = sqlite3.Row
    return connection


def _check(connection: sqlite3.Connection, path: Path, *, thorough: bool) -> None:
    """Refuse what is not ours before anything is written."""
    (identity,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if identity != APPLICATION_ID and tables:
        raise StoreError(
            explain(
                "the store must be a file that normkit made",
                f"{path}, a database of another program",
                "name another file with --store; this one was not changed",
            )
        )
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError(
            explain(
                f"this normkit reads stores up to version {len(MIGRATIONS)}",
                f"{path}, version {version}",
                "upgrade normkit (pip install --upgrade normkit), or name another store with "
                "--store; this one was not changed",
            )
        )
    if thorough:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _damaged(path, verdict)


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema to the newest version; all steps or none."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == len(MIGRATIONS):
        return
    with transaction(connection):
        # Read again under the lock: another process may have done it meanwhile.
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for script in MIGRATIONS[version:]:
            # Not executescript, which would commit the transaction first.
            for statement in script.split(";"):
                if statement.strip():
                    connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
