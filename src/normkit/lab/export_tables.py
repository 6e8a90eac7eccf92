"""The tables of an export: columns with types, and the source of their rows."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from normkit.lab.config import RunConfig
from normkit.lab.judge import judge
from normkit.lab.store import Store

__all__ = ["TABLES", "Row", "Table"]

Row = tuple[Any, ...]
_SCALARS = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: columns with their types, and the source of its rows."""

    columns: pa.Schema
    rows: Callable[[Store], Iterator[Row]]


def _fields() -> list[tuple[str, pa.DataType]]:
    """Return the fields of a run's description; those with several values become JSON."""
    return [
        (field.name, _SCALARS.get(str(field.type), pa.string()))
        for field in dataclasses.fields(RunConfig)
    ]


def _runs(store: Store) -> Iterator[Row]:
    parts: dict[str, list[Any]] = {}
    for part in store.parts():
        parts.setdefault(part.key, []).append(part)
    for key in store.run_keys():
        run = store.get(key)
        assert run is not None
        played = parts.get(key, [])
        when = None
        if run.finished is not None:
            when = datetime.datetime.fromtimestamp(run.finished, tz=datetime.timezone.utc)
        yield (
            key,
            *("; ".join(dict.fromkeys(getattr(part, name) for part in played)) for name in _PLAYED),
            run.status,
            run.step,
            run.config.steps,
            run.diverged_step,
            _reason(run.error),
            run.seconds,
            when,
            run.machine,
            *(run.versions.get(name, "") for name in _VERSIONS),
            *(_plain(getattr(run.config, name)) for name, _ in _fields()),
        )


def _reason(error: str) -> str:
    """Return the error without its traceback, which contains this machine's folders."""
    _, trace, rest = error.rpartition("Traceback (most recent call last):\n")
    if not trace:
        return error
    # The trace's lines are indented; what follows them is the message.
    lines = itertools.dropwhile(lambda line: line.startswith(" "), rest.splitlines())
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, tuple) else value


def _parts(store: Store) -> Iterator[Row]:
    yield from store.parts()


def _measurements(store: Store) -> Iterator[Row]:
    for key in store.run_keys():
        run = store.get(key)
        for name, points in run.metrics.items() if run else ():
            for point in points:
                yield (key, name, *point)


def _vectors(store: Store) -> Iterator[Row]:
    for key in store.run_keys():
        run = store.get(key)
        assert run is not None
        for name in run.vectors:
            if name in run.metrics:  # image by image, packed (normkit.lab.by_image)
                continue
            for step, values in run.vectors[name].items():
                for index, value in enumerate(values):
                    yield (key, name, step, index, value)


def _verdicts(store: Store) -> Iterator[Row]:
    for preset in dict.fromkeys(preset for _, preset in store.plans()):
        for finding in judge(store, preset):
            about = (finding.key, preset, finding.title, finding.word, finding.sentence)
            parts = (finding.confirmed, finding.parts)
            counts = (*parts, finding.runs, finding.diverged, finding.seconds)
            for each in finding.comparisons:
                effect = (each.effect, each.low, each.high, each.smallest, each.margin, each.p)
                yield (
                    *(*about, *counts, each.question, each.decides, each.word, each.unit),
                    *(*effect, each.survives, each.seeds, *(each.needed or (None, None))),
                    *(each.shared, each.freedom, each.images),
                )
            if not finding.comparisons:
                yield (*about, *counts, "", False, "", "", *[None] * 13)


_PLAYED = ("claim", "preset", "arm")
_VERSIONS = ("normkit", "python", "torch", "numpy")

TABLES: dict[str, Table] = {
    "runs": Table(
        pa.schema(
            [
                ("run", pa.string()),
                *((f"{name}s", pa.string()) for name in _PLAYED),
                ("status", pa.string()),
                ("step", pa.int64()),
                ("steps", pa.int64()),
                ("diverged_step", pa.int64()),
                ("error", pa.string()),
                ("seconds", pa.float64()),
                ("finished", pa.timestamp("us", tz="UTC")),
                ("machine", pa.string()),
                *((f"{name}_version", pa.string()) for name in _VERSIONS),
                *_fields(),
            ]
        ),
        _runs,
    ),
    "parts": Table(
        pa.schema(
            [
                ("claim", pa.string()),
                ("preset", pa.string()),
                ("position", pa.int64()),
                ("arm", pa.string()),
                ("run", pa.string()),
            ]
        ),
        _parts,
    ),
    "measurements": Table(
        pa.schema(
            [
                ("run", pa.string()),
                ("metric", pa.string()),
                ("step", pa.int64()),
                ("epoch", pa.int64()),
                ("value", pa.float64()),
            ]
        ),
        _measurements,
    ),
    "vectors": Table(
        pa.schema(
            [
                ("run", pa.string()),
                ("metric", pa.string()),
                ("step", pa.int64()),
                ("index", pa.int64()),
                ("value", pa.float64()),
            ]
        ),
        _vectors,
    ),
    "verdicts": Table(
        pa.schema(
            [
                *((name, pa.string()) for name in ("claim", "preset", "title")),
                *((name, pa.string()) for name in ("verdict", "sentence")),
                *((name, pa.int64()) for name in ("confirmed", "parts", "runs", "diverged")),
                ("seconds", pa.float64()),
                ("question", pa.string()),
                ("decides", pa.bool_()),
                ("word", pa.string()),
                ("unit", pa.string()),
                *(
                    (name, pa.float64())
                    for name in ("effect", "low", "high", "smallest", "margin", "p")
                ),
                ("survives", pa.bool_()),
                *((name, pa.int64()) for name in ("seeds", "needed_low", "needed_high")),
                *((name, pa.float64()) for name in ("shared", "freedom")),
                ("images", pa.int64()),
            ]
        ),
        _verdicts,
    ),
}
