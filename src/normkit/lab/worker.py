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
    "checked",
    "fail",
    "key_of",
    "load",
    "run",
]

TrainFn = Callable[..., Outcome]
"""Called as ``trainer(config, dataset, log, resume=, stopping=)``."""


class RunLog(Log, Protocol):
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


def run(text: str, stopping: Callable[[], bool], device: str = "cpu") -> str:
    """Carry out one run on a device; says how it went.

    Returns:
        "done" or "diverged": a result is stored; "stopped": it was asked to, and can go on;
        "held": another process is at it, or has done it; "failed": an error is stored.

    Raises:
        StoreError: the store cannot be written; what it holds stands, and the run can go on.
    """
    place = Placement(find_device(device))
    return carry_out(text, stopping, functools.partial(train, place=place), lambda _: str(place))


def carry_out(
    text: str,
    stopping: Callable[[], bool],
    trainer: TrainFn,
    where: Callable[[RunConfig], str],
) -> str:
    """As :func:`run`, with a training of one's own; ``where`` says what to note as its place."""
    task = json.loads(text)
    with Store(Path(task["store"]), create=False, check=False) as store:
        known = store.get(task["key"])
        if known is None:
            return "held"
        place = where(known.config) if known.config.kind == "training" else ""
        lease = acquire(store, task["key"], Holder(machine=machine.summary(place)))
        if lease is None:
            return "held"
        return attempt(known.config, lease, stopping, trainer=trainer)


def attempt(
    config: RunConfig,
    lease: RunLog,
    stopping: Callable[[], bool],
    find: Callable[[str], data.Dataset] | None = None,
    trainer: TrainFn | None = None,
) -> str:
    """Carry out a run whose lease is taken; says how it went, as :func:`run` does.

    ``find`` gives the data set of a name, :func:`load` if not given; ``trainer`` trains,
    :func:`normkit.lab.training.train` if not given. Time is taken here and on the CPU, always.

    Raises:
        StoreError: as :func:`run` does.
    """
    try:
        with lease.beating():
            try:
                return _train(config, lease, stopping, find or load, trainer or train)
            except (LeaseLostError, StoreError):
                raise  # a full disk, say: no fault of the run, which goes on another time
            except Exception:  # whatever it is belongs to this run; the others go on
                lease.fail(traceback.format_exc())
                return "failed"
    except LeaseLostError:
        return "held"


def _train(
    config: RunConfig,
    lease: RunLog,
    stopping: Callable[[], bool],
    find: Callable[[str], data.Dataset],
    trainer: TrainFn,
) -> str:
    dataset = checked(config, find(config.data))
    if config.kind == "timing":
        outcome = measure_step_time(config, dataset, lease, stopping=stopping)
    else:
        outcome = trainer(config, dataset, lease, resume=lease.resume(), stopping=stopping)
    if outcome.stopped:
        lease.release()
        return "stopped"
    lease.finish(seconds=outcome.seconds, diverged_step=outcome.diverged_step)
    return "done" if outcome.diverged_step is None else "diverged"


def checked(config: RunConfig, dataset: data.Dataset) -> data.Dataset:
    """The data set, if it is the edition that the run needs.

    Raises:
        DataError: it is the other one.
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
    """Note that a run cannot be done, when the worker itself could not say so."""
    with Store(path, create=False, check=False) as store:
        lease = acquire(store, key)
        if lease is not None:
            lease.fail(error)
