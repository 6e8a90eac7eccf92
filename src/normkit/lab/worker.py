"""What a worker process does with one run: take it, train it, write it down.

The argument is text (the store's path and the run's key), so that any executor can carry it.
"""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from normkit.errors import DataError, StoreError, explain
from normkit.lab import data
from normkit.lab.config import RunConfig
from normkit.lab.leases import LeaseLostError, acquire
from normkit.lab.store import Store
from normkit.lab.timing import take_time
from normkit.lab.training import Log, train

__all__ = ["Right", "argument", "attempt", "fail", "key_of", "load", "run"]


class Right(Log, Protocol):
    """The right to write one run, here (:class:`normkit.lab.leases.Lease`) or from elsewhere."""

    def beating(self) -> AbstractContextManager[None]: ...

    def resume(self) -> bytes | None: ...

    def finish(self, *, seconds: float, diverged_step: int | None) -> None: ...

    def fail(self, error: str) -> None: ...

    def release(self) -> None: ...


def argument(store: Path, key: str) -> str:
    """The text that tells a worker what to do."""
    return json.dumps({"store": str(Path(store).resolve()), "key": key})


def key_of(text: str) -> str:
    """The run's key in a worker's argument."""
    return str(json.loads(text)["key"])


@functools.lru_cache(maxsize=2)
def load(name: str) -> data.Dataset:
    """The data set of this name, read once in each process; nothing is downloaded."""
    return data.load(name, offline=True)


def run(text: str, stopping: Callable[[], bool]) -> str:
    """Carry out one run; says how it went.

    Returns:
        "done" or "diverged": a result is stored; "stopped": it was asked to, and can go on;
        "held": another process is at it, or has done it; "failed": an error is stored.

    Raises:
        StoreError: the store cannot be written; what it holds stands, and the run can go on.
    """
    task = json.loads(text)
    with Store(Path(task["store"]), create=False, check=False) as store:
        known = store.get(task["key"])
        lease = acquire(store, task["key"])
        if known is None or lease is None:
            return "held"
        return attempt(known.config, lease, stopping)


def attempt(
    config: RunConfig,
    lease: Right,
    stopping: Callable[[], bool],
    find: Callable[[str], data.Dataset] | None = None,
) -> str:
    """Carry out a run whose lease is taken; says how it went, as :func:`run` does.

    ``find`` gives the data set of a name, :func:`load` if not given.

    Raises:
        StoreError: as :func:`run` does.
    """
    try:
        with lease.beating():
            try:
                return _train(config, lease, stopping, find or load)
            except (LeaseLostError, StoreError):
                raise  # a full disk, say: no fault of the run, which goes on another time
            except Exception:  # whatever it is belongs to this run; the others go on
                lease.fail(traceback.format_exc())
                return "failed"
    except LeaseLostError:
        return "held"


def _train(
    config: RunConfig,
    lease: Right,
    stopping: Callable[[], bool],
    find: Callable[[str], data.Dataset],
) -> str:
    dataset = find(config.data)
    edition = "subset" if dataset.subset else "full"
    if edition != config.edition:
        raise DataError(
            explain(
                f"this run needs the {config.edition} data set {config.data}",
                f"the {edition} one",
                f"fetch it with: normkit data fetch {config.data}",
            )
        )
    if config.kind == "timing":
        outcome = take_time(config, dataset, lease, stopping=stopping)
    else:
        outcome = train(config, dataset, lease, resume=lease.resume(), stopping=stopping)
    if outcome.stopped:
        lease.release()
        return "stopped"
    lease.finish(seconds=outcome.seconds, diverged_step=outcome.diverged_step)
    return "done" if outcome.diverged_step is None else "diverged"


def fail(path: Path, key: str, error: str) -> None:
    """Note that a run cannot be done, when the worker itself could not say so."""
    with Store(path, create=False, check=False) as store:
        lease = acquire(store, key)
        if lease is not None:
            lease.fail(error)
