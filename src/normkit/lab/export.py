"""Export a store as CSV or Parquet tables.

Five tables, each a file: ``runs`` (a row each: every field of its description, how it ended, where
and with what), ``parts`` (which run plays which part in which claim), ``measurements`` and
``vectors`` (long form: a row for each number), ``verdicts`` (a row for each effect). ``about.json``
beside them records the versions and the type of each column.

pyarrow writes both formats. With pandas, Parquet needs pyarrow all the same, whole numbers with
gaps become floats, and a table must fit in memory; here it goes through in pieces.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
from pyarrow import csv, parquet

from normkit.errors import StoreError, message
from normkit.lab import machine
from normkit.lab.export_tables import TABLES, Row, Table
from normkit.lab.store import Store

__all__ = ["FORMATS", "Format", "write"]

Format = Literal["csv", "parquet"]
FORMATS: tuple[Format, ...] = ("csv", "parquet")

ABOUT = "about.json"
MADE_BY = "normkit lab export"
PIECE = 50_000
"""Rows that are handed on at once."""


def write(store: Store, folder: Path, kind: Format) -> dict[str, int]:
    """Write all tables of a store into a folder; return the number of rows of each.

    All are of one moment, also during a run. Files of an earlier export are replaced once all their
    successors are complete.

    Raises:
        StoreError: the folder cannot be written, or has such files from elsewhere.
    """
    targets = {name: folder / f"{name}.{kind}" for name in TABLES}
    about = folder / ABOUT
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_ours(about, [*targets.values(), about])
        with store.snapshot(), contextlib.ExitStack() as files:
            parts = {name: files.enter_context(_beside(targets[name])) for name in TABLES}
            counts = {
                name: _write_table(table, store, parts[name], kind)
                for name, table in TABLES.items()
            }
            described = files.enter_context(_beside(about))
            described.write_text(
                json.dumps(_about(store, counts), indent=2) + "\n", encoding="utf-8"
            )
            # It goes first: by it, the others are known to be ours if this ends between two.
            described.replace(about)
            for name, part in parts.items():
                part.replace(targets[name])
            # Those of an export in the other format are of another moment.
            for other in set(get_args(Format)) - {kind}:
                for name in TABLES:
                    (folder / f"{name}.{other}").unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            message(
                "a folder that can be written, for an export",
                f"{folder}: {error}",
                "name another with --out, or free some space",
            )
        ) from error
    return counts


def _check_ours(about: Path, targets: Iterable[Path]) -> None:
    made_by = None
    if about.is_file():
        with contextlib.suppress(ValueError, AttributeError):
            made_by = json.loads(about.read_text(encoding="utf-8")).get("made_by")
    foreign = [target.name for target in targets if target.exists()]
    if foreign and made_by != MADE_BY:
        raise StoreError(
            message(
                "a folder without files of other programs under the names of an export",
                f"{', '.join(foreign)} in {about.parent}, from elsewhere",
                "name another folder with --out",
            )
        )


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a temporary file beside the target, removed afterwards unless moved."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _write_table(table: Table, store: Store, path: Path, kind: Format) -> int:
    count = 0
    writer = csv.CSVWriter if kind == "csv" else parquet.ParquetWriter
    with writer(str(path), table.columns) as out:
        for piece in _pieces(table.rows(store)):
            columns = zip(*piece, strict=True)
            arrays = [
                pa.array(column, type=field.type)
                for column, field in zip(columns, table.columns, strict=True)
            ]
            out.write_batch(pa.record_batch(arrays, schema=table.columns))
            count += len(piece)
    return count


def _pieces(rows: Iterator[Row]) -> Iterator[list[Row]]:
    piece: list[Row] = []
    for row in rows:
        piece.append(row)
        if len(piece) == PIECE:
            yield piece
            piece = []
    if piece:
        yield piece


def _about(store: Store, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "made_by": MADE_BY,
        "store": store.path.name,  # where it lies is nobody else's business
        "written": datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": machine.versions(),
        "tables": {
            name: {
                "rows": counts[name],
                "columns": {field.name: str(field.type) for field in table.columns},
            }
            for name, table in TABLES.items()
        },
    }
