"""Carry out one run in a worker process: acquire, train, record.

The argument is text (the store's path and the run's key), so that any executor can transport it.
"""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from normkit.errors import DataError, StoreError, message
from normkit.lab import data, machine
from normkit.lab.config import RunConfig
from normkit.lab.leases import Holder, LeaseLostError, acquire
from normkit.lab.placement import Placement, find_device
from normkit.lab.store import Store
from normkit.lab.timing import measure_step_time
from normkit.lab.trainer import Log, Outcome
from normkit.lab.training import train

__all__ = [
    "RunLog",
    "TrainFn",
    "argument",
    "attempt",
    "carry_out",
    "fail",
    "key_of",
    "load",
    "require_edition",
    "run",
]

TrainFn = Callable[..., Outcome]
"""Called as ``train_fn(config, dataset, log, resume=, stopping=)``."""


class RunLog(Log, Protocol):
    """The right to write one run, here (:class:`normkit.lab.leases.Lease`) or remotely."""

    def beating(self) -> AbstractContextManager[None]: ...

    def resume(self) -> bytes | None: ...

    def finish(self, *, seconds: float, diverged_step: int | None) -> None: ...

    def fail(self, error: str) -> None: ...

    def release(self) -> None: ...


def argument(store: Path, key: str) -> str:
    """Encode a worker's task as text."""
    return json.dumps({"store": str(Path(store).resolve()), "key": key})


def key_of(text: str) -> str:
    """Return the run's key in a worker's argument."""
    return str(json.loads(text)["key"])


@functools.lru_cache(maxsize=2)
def load(name: str) -> data.Dataset:
    """Load the data set of this name, once per process; downloads nothing."""
    return data.load(name, offline=True)


def run(text: str, stopping: Callable[[], bool], device: str = "cpu") -> str:
    """Carry out one run on a device; return its result in a word.

    Returns:
        "done" or "diverged": a result is stored; "stopped": on request, it can be resumed;
        "held": another process has it, or has finished it; "failed": an error is stored.

    Raises:
        StoreError: the store cannot be written; its records remain, and the run can be resumed.
    """
    placement = Placement(find_device(device))
    train_here = functools.partial(train, placement=placement)
    return carry_out(text, stopping, train_here, lambda _: str(placement))


def carry_out(
    text: str,
    stopping: Callable[[], bool],
    train_fn: TrainFn,
    where: Callable[[RunConfig], str],
) -> str:
    """Carry out a run with this ``train_fn``; ``where`` returns the placement to record."""
    task = json.loads(text)
    with Store(Path(task["store"]), create=False, check=False) as store:
        stored = store.get(task["key"])
        if stored is None:
            return "held"
        place = where(stored.config) if stored.config.kind == "training" else ""
        lease = acquire(store, task["key"], Holder(machine=machine.summary(place)))
        if lease is None:
            return "held"
        return attempt(stored.config, lease, stopping, train_fn=train_fn)


def attempt(
    config: RunConfig,
    lease: RunLog,
    stopping: Callable[[], bool],
    find: Callable[[str], data.Dataset] | None = None,
    train_fn: TrainFn | None = None,
) -> str:
    """Carry out a run whose lease is acquired; return its result as :func:`run` does.

    ``find`` returns the data set of a name, by default :func:`load`; ``train_fn`` is by default
    :func:`normkit.lab.training.train`. Timings always run here, on the CPU.

    Raises:
        StoreError: see :func:`run`.
    """
    try:
        with lease.beating():
            try:
                return _train(config, lease, stopping, find or load, train_fn or train)
            except (LeaseLostError, StoreError):
                raise  # e.g. a full disk: not the run's fault, which resumes later
            except Exception:  # any error belongs to this run; the others continue
                lease.fail(traceback.format_exc())
                return "failed"
    except LeaseLostError:
        return "held"


def _train(
    config: RunConfig,
    lease: RunLog,
    stopping: Callable[[], bool],
    find: Callable[[str], data.Dataset],
    train_fn: TrainFn,
) -> str:
    dataset = require_edition(config, find(config.data))
    if config.kind == "timing":
        outcome = measure_step_time(config, dataset, lease, stopping=stopping)
    else:
        outcome = train_fn(config, dataset, lease, resume=lease.resume(), stopping=stopping)
    if outcome.stopped:
        lease.release()
        return "stopped"
    lease.finish(seconds=outcome.seconds, diverged_step=outcome.diverged_step)
    return "done" if outcome.diverged_step is None else "diverged"


def require_edition(config: RunConfig, dataset: data.Dataset) -> data.Dataset:
    """Return the data set, if it is the edition that the run needs.

    Raises:
        DataError: it is the other edition.
    """
    edition = "subset" if dataset.subset else "full"
    if edition != config.edition:
        raise DataError(
            message(
                f"the {config.edition} data set {config.data}, which this run needs",
                f"the {edition} one",
                f"fetch it with: normkit data fetch {config.data}",
            )
        )
    return dataset


def fail(path: Path, key: str, error: str) -> None:
    """Record a run as failed, when its worker could not."""
    with Store(path, create=False, check=False) as store:
        lease = acquire(store, key)
        if lease is not None:
            lease.fail(error)
