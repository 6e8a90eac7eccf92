"""Copy what is readable of a damaged store into a new one.

``sqlite3 .recover`` would do this for any database, but many systems' SQLite, Debian's among them,
is built without what it needs (``SQLITE_ENABLE_DBPAGE_VTAB``), and it knows nothing of runs. Here,
a run comes along whole or not at all: one of which a single measurement is unreadable is planned
anew, as is a claim whose plan is, because a verdict on half of the seeds looks like one on all.

What is damaged in a way that still reads as a sound number cannot be found out, here or elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from normkit.errors import NormkitError, StoreError, message
from normkit.lab.claims.claim import PRESETS
from normkit.lab.claims.registry import all_claims, forms
from normkit.lab.config import RunConfig
from normkit.lab.read_only import must_exist
from normkit.lab.runs import Status
from normkit.lab.schema import MIGRATIONS, check, guarded, log_of, transaction
from normkit.lab.store import Store

__all__ = ["Salvaged", "salvage"]

RESULTS = ("done", "diverged")
STATUS = get_args(Status)
MEASURED = ("metrics", "vectors")
BEGINNING = {
    "status": "waiting", "step": 0, "seconds": 0.0, "diverged_step": None, "error": "",
    "finished": None,
}  # fmt: skip
UNREADABLE = (
    sqlite3.Error, NormkitError, ValueError, TypeError, KeyError, AttributeError,
)  # fmt: skip
"""What reading of a damaged page may end in: SQLite's word for it, or values that make no sense."""

Row = tuple[Any, ...]


@dataclasses.dataclass
class Salvaged:
    """The result of a salvage: counts of runs, and plans as (claim, preset).

    ``results`` are whole; ``unfinished`` had none, and go on from their checkpoint where that is
    readable; ``anew`` were results, or had a checkpoint, and have to be trained from the beginning;
    ``lost`` have no readable description. ``left_out`` are plans that are not whole: the command
    that made them makes them again, and finds the runs that came along.
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
                found = _move(source, new.connection)
        except BaseException:
            new.close()
            for name in (out.name, f"{out.name}-wal", f"{out.name}-shm"):
                out.with_name(name).unlink(missing_ok=True)
            raise
        new.close()
    return found


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
    found = Salvaged()
    kept = {run for run in _numbers(source) if _move_run(source, new, run, found)}
    for plan in _pairs(source):
        rows = _plan(source, plan, kept)
        if rows:
            new.executemany("INSERT INTO plans VALUES (?, ?, ?, ?, ?)", rows)
            found.plans.append(plan)
        elif rows is None:
            found.left_out.append(plan)
    for row in _both_ends(source, "facts", "name", "value"):
        if all(isinstance(text, str) for text in row):
            new.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", row)
    return found


def _numbers(source: sqlite3.Connection) -> list[int]:
    """Return all numbers that may be a run's: a gap between readable ones means lost runs."""
    seen = {
        row[0]
        for table, column in (("runs", "id"), ("plans", "run"), ("metrics", "run"))
        for row in _both_ends(source, table, column)
        if isinstance(row[0], int)
    }
    (pages,) = source.execute("PRAGMA page_count").fetchone()
    (size,) = source.execute("PRAGMA page_size").fetchone()
    # A number that is garbage may be as large as any; the file has room for so many runs.
    highest = max((run for run in seen if run <= pages * size // 100), default=0)
    return list(range(1, highest + 1))


def _both_ends(source: sqlite3.Connection, table: str, *columns: str) -> list[Row]:
    """Read the rows in order up to the first unreadable one, and backwards up to the last."""
    rows: dict[Row, None] = {}
    for direction in ("ASC", "DESC"):
        order = ", ".join(f"{column} {direction}" for column in columns)
        query = f"SELECT DISTINCT {', '.join(columns)} FROM {table} ORDER BY {order}"
        try:
            for row in source.execute(query):
                rows[tuple(row)] = None
        except sqlite3.Error:
            continue
        break
    return list(rows)


def _move_run(
    source: sqlite3.Connection, new: sqlite3.Connection, run: int, found: Salvaged
) -> bool:
    """Copy a run with its data, or its description alone; return whether it was copied."""
    columns = [str(column[1]) for column in new.execute("PRAGMA table_info(runs)")]
    try:
        values = source.execute(
            f"SELECT {', '.join(columns)} FROM runs WHERE id = ?", (run,)
        ).fetchone()
        if values is None:  # no error: there never was one
            return False
        row = _sound(dict(zip(columns, values, strict=True)))
    except UNREADABLE:
        found.lost += 1
        return False
    try:
        parts = _belongings(source, row)
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
    setattr(found, come, getattr(found, come) + 1)
    return come != "lost"


def _insert(new: sqlite3.Connection, table: str, row: Row) -> None:
    new.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _sound(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a run, if its description matches its key."""
    if RunConfig.from_json(row["config"]).key != row["key"]:
        raise ValueError("not the description that the key was made of")
    if row["status"] not in STATUS or not isinstance(row["steps"], int):
        raise ValueError("no such status")
    json.loads(row["versions"])
    return row


def _belongings(source: sqlite3.Connection, row: dict[str, Any]) -> dict[str, list[Row]]:
    """Read measurements and checkpoint of a run.

    Raises:
        ValueError, sqlite3.Error: they are not all there.
    """
    # The checkpoint of a result was taken out when it ended; where it was is of no interest.
    tables = MEASURED if row["status"] in RESULTS else (*MEASURED, "checkpoints")
    found = {
        table: [
            tuple(each)
            for each in source.execute(f"SELECT * FROM {table} WHERE run = ?", (row["id"],))
        ]
        for table in tables
    }
    for each in found["metrics"]:
        if not isinstance(each[2], int) or not isinstance(each[4], float | int | None):
            raise ValueError("metrics")
    for each in found["vectors"]:
        [float(value) for value in json.loads(each[3])]
    if not all(_intact(each[2]) for each in found.get("checkpoints", ())):
        raise ValueError("checkpoint")
    steps = [each[2] for table in MEASURED for each in found[table]]
    # What diverged is recorded to the last step, too.
    if row["status"] in RESULTS and max(steps, default=0) != row["steps"]:
        raise ValueError("the last step is missing")
    return found


def _intact(checkpoint: bytes) -> bool:
    """Whether this is an archive as torch.save writes it, with valid checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(checkpoint)) as archive:
            return archive.testzip() is None
    except Exception:  # a bit may name encryption, or any way to pack; each has errors of its own
        return False


def _pairs(source: sqlite3.Connection) -> list[tuple[str, str]]:
    """Return all possible plans: those this version knows, and any others that are readable."""
    known = [(claim.key, preset) for claim in forms(all_claims().values()) for preset in PRESETS]
    read = [(row[0], row[1]) for row in _both_ends(source, "plans", "claim", "preset")]
    others = [pair for pair in read if all(isinstance(text, str) for text in pair)]
    return list(dict.fromkeys([*known, *others]))


def _plan(source: sqlite3.Connection, plan: tuple[str, str], runs: set[int]) -> list[Row] | None:
    """Read the rows of a plan; none if there is no such plan, None if it is incomplete."""
    try:
        rows = [
            tuple(row)
            for row in source.execute(
                "SELECT claim, preset, position, arm, run FROM plans "
                "WHERE claim = ? AND preset = ? ORDER BY position",
                plan,
            )
        ]
    except UNREADABLE:
        return None
    whole = [row[2] for row in rows] == list(range(len(rows)))
    sound = all(isinstance(row[3], str) and row[4] in runs for row in rows)
    return rows if whole and sound else None
