"""Read what is readable of a damaged store: its rows, runs and plans.

A run counts as readable as a whole: if a single measurement is not, it is trained again, because a
verdict on half of the measurements looks like one on all.
"""

from __future__ import annotations

import io
import json
import sqlite3
import zipfile
from typing import Any, get_args

from normkit.errors import NormkitError
from normkit.lab.claims.claim import PRESETS
from normkit.lab.claims.registry import all_claims, forms
from normkit.lab.config import RunConfig
from normkit.lab.runs import Status

__all__ = [
    "RESULTS",
    "UNREADABLE",
    "Row",
    "checked_run",
    "plan_names",
    "read_plan",
    "read_run_data",
    "rows_from_both_ends",
    "run_numbers",
]

RESULTS = ("done", "diverged")
STATUS = get_args(Status)
MEASURED = ("metrics", "vectors")
UNREADABLE = (
    sqlite3.Error, NormkitError, ValueError, TypeError, KeyError, AttributeError,
)  # fmt: skip
"""The errors of reading a damaged page: SQLite's, or those of values that make no sense."""

Row = tuple[Any, ...]


def run_numbers(source: sqlite3.Connection) -> list[int]:
    """Return all numbers that may be a run's: a gap between readable ones means lost runs."""
    readable = {
        row[0]
        for table, column in (("runs", "id"), ("plans", "run"), ("metrics", "run"))
        for row in rows_from_both_ends(source, table, column)
        if isinstance(row[0], int)
    }
    (pages,) = source.execute("PRAGMA page_count").fetchone()
    (size,) = source.execute("PRAGMA page_size").fetchone()
    # A number that is garbage may be as large as any; the file has room for so many runs.
    highest = max((run for run in readable if run <= pages * size // 100), default=0)
    return list(range(1, highest + 1))


def rows_from_both_ends(source: sqlite3.Connection, table: str, *columns: str) -> list[Row]:
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


def checked_run(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a run, if its description matches its key."""
    if RunConfig.from_json(row["config"]).key != row["key"]:
        raise ValueError("not the description that the key was made of")
    if row["status"] not in STATUS or not isinstance(row["steps"], int):
        raise ValueError("no such status")
    json.loads(row["versions"])
    return row


def read_run_data(source: sqlite3.Connection, row: dict[str, Any]) -> dict[str, list[Row]]:
    """Read measurements and checkpoint of a run.

    Raises:
        ValueError, sqlite3.Error: they are not all there.
    """
    # The checkpoint of a result was taken out when it ended; where it was is of no interest.
    tables = MEASURED if row["status"] in RESULTS else (*MEASURED, "checkpoints")
    rows = {
        table: [
            tuple(each)
            for each in source.execute(f"SELECT * FROM {table} WHERE run = ?", (row["id"],))
        ]
        for table in tables
    }
    for each in rows["metrics"]:
        if not isinstance(each[2], int) or not isinstance(each[4], float | int | None):
            raise ValueError("metrics")
    for each in rows["vectors"]:
        [float(value) for value in json.loads(each[3])]
    if not all(_intact(each[2]) for each in rows.get("checkpoints", ())):
        raise ValueError("checkpoint")
    steps = [each[2] for table in MEASURED for each in rows[table]]
    # What diverged is recorded to the last step, too.
    if row["status"] in RESULTS and max(steps, default=0) != row["steps"]:
        raise ValueError("the last step is missing")
    return rows


def _intact(checkpoint: bytes) -> bool:
    """Return True for an archive in the format of torch.save with valid checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(checkpoint)) as archive:
            return archive.testzip() is None
    except Exception:  # a bit may name encryption, or any way to pack; each has errors of its own
        return False


def plan_names(source: sqlite3.Connection) -> list[tuple[str, str]]:
    """Return all possible plans: those this version knows, and any others that are readable."""
    planned = [(claim.key, preset) for claim in forms(all_claims().values()) for preset in PRESETS]
    read = [(row[0], row[1]) for row in rows_from_both_ends(source, "plans", "claim", "preset")]
    others = [pair for pair in read if all(isinstance(text, str) for text in pair)]
    return list(dict.fromkeys([*planned, *others]))


def read_plan(
    source: sqlite3.Connection, plan: tuple[str, str], runs: set[int]
) -> list[Row] | None:
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
