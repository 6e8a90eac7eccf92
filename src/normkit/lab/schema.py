"""The schema of the store's file, and errors that name the fix.

``application_id`` marks the file as ours and ``user_version`` counts its schema.
"""

from __future__ import annotations

import contextlib
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from normkit.errors import StoreError, message

__all__ = [
    "APPLICATION_ID",
    "MIGRATIONS",
    "check",
    "damaged",
    "guarded",
    "log_of",
    "migrate",
    "transaction",
]

APPLICATION_ID = 0x6E6B6C62  # "nklb"

# Newer Pythons have SQLite's error codes; with 3.10, only its words tell errors apart.
DAMAGE = ("decode to UTF-8", "no such table", "no such column")
FULL = ("disk is full",)

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
    """Turn SQLite's errors into a :class:`StoreError` that names the file and the fix."""
    try:
        yield
    except sqlite3.OperationalError as error:
        reason = str(error)
        if any(sign in reason for sign in DAMAGE):
            raise damaged(path, reason) from error
        if any(sign in reason for sign in FULL):
            raise StoreError(
                message(
                    "free space on the disk of the store",
                    f"{path}: {reason}",
                    f"free some space in {path.parent} (df -h shows how much there is), then "
                    "run the same command again; everything recorded is kept",
                )
            ) from error
        raise StoreError(
            message(
                "a store that can be read and written",
                f"{path}: {reason}",
                "check the folder, its permissions, free space, and whether another program "
                "holds the file; then run the same command again",
            )
        ) from error
    except sqlite3.DataError as error:
        raise StoreError(
            message(
                "values of less than 10^9 bytes in the store, checkpoints too",
                f"{path}: {error}",
                "use a smaller model, or an optimizer with less state (sgd)",
            )
        ) from error
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.DatabaseError as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, what: str) -> StoreError:
    """Return the error for a damaged store; ``what`` describes the damage."""
    return StoreError(
        message(
            "a sound SQLite file as the store",
            f"{path}: {what}",
            "nothing was changed; salvage what is readable with: normkit lab salvage "
            f"{shlex.quote(str(path))} --out NEW, or name another store with --store",
        )
    )


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Open a write transaction: all of it or nothing.

    ``BEGIN IMMEDIATE`` takes the write lock at once. A transaction that reads first and asks for
    the lock later can be refused without waiting, whatever the busy timeout.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # On a full disk it is COMMIT that fails, and SQLite may have rolled back by itself; to do
        # it once more would put "no transaction is active" in place of the reason.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def log_of(path: Path) -> Path | None:
    """Return the write-ahead log beside a store, None if there is none or it is empty."""
    log = path.with_name(path.name + "-wal")
    return log if log.is_file() and log.stat().st_size else None


def check(connection: sqlite3.Connection, path: Path, *, pages: bool = False) -> None:
    """Raise if the file is not ours, before anything is written; ``pages`` checks every page."""
    # In this order: another process may be making it, and writes both in one transaction.
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (identity,) = connection.execute("PRAGMA application_id").fetchone()
    if identity != APPLICATION_ID and tables:
        raise StoreError(
            message(
                "a store made by normkit",
                f"{path}, a database of another program",
                "name another file with --store; this one was not changed",
            )
        )
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError(
            message(
                f"a store of version {len(MIGRATIONS)} or older",
                f"{path}, version {version}",
                "use the normkit that made it, or a newer one, or name another store with --store; "
                "this one was not changed",
            )
        )
    if pages:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        if path.stat().st_size % size and log_of(path) is None:
            # SQLite reads what is missing of a page as zeros, and may find nothing wrong with them.
            raise damaged(path, "its end is missing")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise damaged(path, verdict)


def migrate(connection: sqlite3.Connection) -> None:
    """Migrate the schema to the newest version, in one transaction."""
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
