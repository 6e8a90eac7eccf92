"""Copy what is readable of a damaged store into a new one.

``sqlite3 .recover`` would do this for any database, but many systems' SQLite, Debian's among them,
is built without what it needs (``SQLITE_ENABLE_DBPAGE_VTAB``), and it knows nothing of runs. Here,
a run is copied completely or planned again, and so is a claim's plan.

Damage that still reads as a valid number cannot be detected, here or elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from normkit.errors import StoreError, message
from normkit.lab.damaged import (
    RESULTS,
    UNREADABLE,
    Row,
    checked_run,
    plan_names,
    read_plan,
    read_run_data,
    rows_from_both_ends,
    run_numbers,
)
from normkit.lab.read_only import must_exist
from normkit.lab.schema import MIGRATIONS, check, guarded, log_of, transaction
from normkit.lab.store import Store

__all__ = ["Salvaged", "salvage"]

BEGINNING = {
    "status": "waiting", "step": 0, "seconds": 0.0, "diverged_step": None, "error": "",
    "finished": None,
}  # fmt: skip


@dataclasses.dataclass
class Salvaged:
    """The result of a salvage: counts of runs, and plans as (claim, preset).

    ``results`` are complete; ``unfinished`` had no result, and resume from their checkpoint if it
    is readable; ``anew`` were results, or had a checkpoint, and must be trained from the beginning;
    ``lost`` have no readable description. ``left_out`` are incomplete plans: the command that made
    them makes them again, and finds the runs that were copied.
    """

    results: int = 0
    unfinished: int = 0
    anew: int = 0
    lost: int = 0
    plans: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    left_out: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def salvage(damaged: Path, out: Path) -> Salvaged:
    """Copy what is readable of a damaged store, which is not changed, into a new store.

    Raises:
        StoreError: nothing of the file is readable, it is not ours or comes from another version,
            or ``out`` exists or cannot be written.
    """
    must_exist(damaged)
    if out.exists():
        raise StoreError(
            message(
                "a new file for the salvaged runs",
                f"{out}, which exists",
                "name another with --out",
            )
        )
    with _copy(damaged) as source:
        new = Store(out)
        try:
            with guarded(out), transaction(new.connection):
                salvaged = _move(source, new.connection)
        except BaseException:
            new.close()
            for name in (out.name, f"{out.name}-wal", f"{out.name}-shm"):
                out.with_name(name).unlink(missing_ok=True)
            raise
        new.close()
    return salvaged


@contextlib.contextmanager
def _copy(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a copy of the file and its log: SQLite may write to what it opens."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "store.sqlite"
        try:
            shutil.copyfile(path, copy)
            if (log := log_of(path)) is not None:
                shutil.copyfile(log, copy.with_name(copy.name + "-wal"))
        except OSError as error:
            raise StoreError(
                message(
                    "space for a temporary copy of the damaged store",
                    f"{path}: {error}",
                    f"free some space in {folder}, or set TMPDIR to another folder",
                )
            ) from error
        with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as source:
            # Without this, SQLite opens no file that is shorter than its header says.
            source.execute("PRAGMA writable_schema = ON")
            source.execute("PRAGMA cell_size_check = ON")
            try:
                check(source, path)
                (version,) = source.execute("PRAGMA user_version").fetchone()
                source.execute("SELECT id FROM runs LIMIT 0")
            except sqlite3.Error as error:
                raise _hopeless(path, str(error)) from error
            if version != len(MIGRATIONS):
                raise _hopeless(path, f"a store of version {version}, not {len(MIGRATIONS)}")
            yield source


def _hopeless(path: Path, what: str) -> StoreError:
    return StoreError(
        message(
            "a readable first page of the store, which describes the others",
            f"{path}: {what}",
            "restore a copy of the file, or begin a new store: normkit lab run --store NEW",
        )
    )


def _move(source: sqlite3.Connection, new: sqlite3.Connection) -> Salvaged:
    salvaged = Salvaged()
    copied = {run for run in run_numbers(source) if _move_run(source, new, run, salvaged)}
    for plan in plan_names(source):
        rows = read_plan(source, plan, copied)
        if rows:
            new.executemany("INSERT INTO plans VALUES (?, ?, ?, ?, ?)", rows)
            salvaged.plans.append(plan)
        elif rows is None:
            salvaged.left_out.append(plan)
    for row in rows_from_both_ends(source, "facts", "name", "value"):
        if all(isinstance(text, str) for text in row):
            new.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", row)
    return salvaged


def _move_run(
    source: sqlite3.Connection, new: sqlite3.Connection, run: int, salvaged: Salvaged
) -> bool:
    """Copy a run with its data, or its description alone; return whether it was copied."""
    columns = [str(column[1]) for column in new.execute("PRAGMA table_info(runs)")]
    try:
        values = source.execute(
            f"SELECT {', '.join(columns)} FROM runs WHERE id = ?", (run,)
        ).fetchone()
        if values is None:  # no error: there never was one
            return False
        row = checked_run(dict(zip(columns, values, strict=True)))
    except UNREADABLE:
        salvaged.lost += 1
        return False
    try:
        parts = read_run_data(source, row)
        come = "results" if row["status"] in RESULTS else "unfinished"
        row["status"] = "waiting" if row["status"] == "running" else row["status"]
    except UNREADABLE:
        parts, come = {}, "anew"
        row |= BEGINNING
    row["owner"] = ""
    new.execute("SAVEPOINT run")
    try:
        _insert(new, "runs", tuple(row.values()))
        for table, rows in parts.items():
            for each in rows:
                _insert(new, table, each)
    except sqlite3.IntegrityError:  # a page that tells of another run, or of one twice
        new.execute("ROLLBACK TO run")
        come = "lost"
    new.execute("RELEASE run")
    setattr(salvaged, come, getattr(salvaged, come) + 1)
    return come != "lost"


def _insert(new: sqlite3.Connection, table: str, row: Row) -> None:
    new.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
