"""A run as stored, and its part in a claim: plain values, read and validated."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from normkit.errors import OptionError, StoreError, message
from normkit.lab.config import RunConfig
from normkit.lab.schema import damaged

__all__ = ["Part", "Planned", "Run", "Status", "read_run"]

Status = Literal["waiting", "running", "done", "diverged", "failed"]
Points = tuple[tuple[int, int, float | None], ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as stored: its description and its measurements, as plain values.

    ``metrics`` maps a name to points (step, epoch, value); a value is None where there was
    nothing to measure. ``vectors`` maps a name to {step: numbers}.
    """

    config: RunConfig
    status: Status
    step: int
    seconds: float
    diverged_step: int | None
    error: str
    versions: Mapping[str, str]
    machine: str
    finished: float | None
    metrics: Mapping[str, Points]
    vectors: Mapping[str, Mapping[int, tuple[float, ...]]]

    @property
    def finished_training(self) -> bool:
        """True if this is a result: trained to the end, or diverged."""
        return self.status in ("done", "diverged")

    @property
    def ending(self) -> str:
        """The end of the run, in words."""
        if self.status != "diverged":
            return self.status
        if self.last("epoch_train_loss") is None:
            return f"loss not finite at step {self.diverged_step}"
        return f"no better than guessing after step {self.diverged_step}"

    def by_epoch(self, name: str) -> tuple[float | None, ...]:
        """Return the values of a metric that is measured once an epoch, in order."""
        return tuple(value for _, _, value in self.metrics.get(name, ()))

    def last(self, name: str) -> float | None:
        """Return the last value of a metric, None if there is none."""
        points = self.metrics.get(name, ())
        return points[-1][2] if points else None


class _Vectors(Mapping[str, Mapping[int, tuple[float, ...]]]):
    """The vectors of a run, parsed on access, since few readers need them.

    Raises:
        StoreError: on access, what is stored is not a vector.
    """

    def __init__(self, texts: Mapping[str, Mapping[int, str]], key: str, path: Path) -> None:
        self._texts, self._key, self._path = texts, key, path
        self._parsed: dict[str, dict[int, tuple[float, ...]]] = {}

    def __getitem__(self, name: str) -> dict[int, tuple[float, ...]]:
        if name not in self._parsed:
            texts = self._texts[name].items()
            try:
                self._parsed[name] = {step: tuple(json.loads(text)) for step, text in texts}
            except (ValueError, TypeError) as error:
                raise _unreadable(self._path, self._key, error) from error
        return self._parsed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run with its arm in a claim."""

    arm: str
    run: Run


class Part(NamedTuple):
    """A row of a plan: an arm of a claim at a preset, and the key of its run."""

    claim: str
    preset: str
    position: int
    arm: str
    key: str


def read_run(connection: sqlite3.Connection, row: sqlite3.Row, path: Path) -> Run:
    """Read the run of this row, with its measurements.

    Args:
        path: of the store, for the errors.

    Raises:
        StoreError: a newer normkit's run, or a damaged one.
    """
    try:
        return _parse(connection, row, path)
    except OptionError as error:
        # Sound, and a value that this version's fields do not take.
        raise StoreError(
            message(
                "a run that this version of normkit can describe",
                f"{row['key'][:12]} in {path}: {error}",
                "use the normkit that made it, or a newer one, or name another store with --store",
            )
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise _unreadable(path, row["key"], error) from error


def _unreadable(path: Path, key: str, error: Exception) -> StoreError:
    return damaged(path, f"run {key[:12]} cannot be read ({error})")


def _parse(connection: sqlite3.Connection, row: sqlite3.Row, path: Path) -> Run:
    metrics: dict[str, list[tuple[int, int, float | None]]] = {}
    for name, step, epoch, value in connection.execute(
        "SELECT name, step, epoch, value FROM metrics WHERE run = ? ORDER BY name, step",
        (row["id"],),
    ):
        metrics.setdefault(name, []).append((step, epoch, value))
    vectors: dict[str, dict[int, str]] = {}
    for name, step, data in connection.execute(
        "SELECT name, step, data FROM vectors WHERE run = ? ORDER BY name, step", (row["id"],)
    ):
        vectors.setdefault(name, {})[step] = data
    return Run(
        config=RunConfig.from_json(row["config"]),
        status=row["status"],
        step=row["step"],
        seconds=row["seconds"],
        diverged_step=row["diverged_step"],
        error=row["error"],
        versions=json.loads(row["versions"]),
        machine=row["machine"],
        finished=row["finished"],
        metrics={name: tuple(points) for name, points in metrics.items()},
        vectors=_Vectors(vectors, row["key"], path),
    )
