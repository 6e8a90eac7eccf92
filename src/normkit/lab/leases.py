"""Leases of runs, so that two processes never train the same one.

A lease is acquired in one transaction that succeeds for one process only. It names its owner by
host and process number, and heartbeats keep it alive. Another process may take it over once its
owner is dead: at once if the process is gone from this host, otherwise after ``STALE_SECONDS``
without a heartbeat. Each write checks in its transaction that its owner still holds the lease; a
process that was suspended and lost it stops at its next write (:class:`LeaseLostError`), so its
numbers never mix with its successor's.

The holder need not be the process that computes: for a worker on another machine, which cannot open
the store, a process on this one holds the lease (:mod:`normkit.lab.executors.store_proxy`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from normkit.lab import machine
from normkit.lab.database import guarded, open_database, transaction
from normkit.lab.store import Store

__all__ = ["COMPARABLE", "STALE_SECONDS", "Holder", "Lease", "LeaseLostError", "acquire", "is_held"]

STALE_SECONDS = 60.0
BEAT_SECONDS = 5.0
COMPARABLE = ("python", "torch", "normkit")
"""Runs computed with equal versions of these are compared with each other."""
BEAT = "UPDATE runs SET beat = ? WHERE id = ? AND owner = ?"


class LeaseLostError(Exception):
    """Another process has taken over this run, so this one must not write to it."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that takes a lease, and the versions it computes with.

    Attributes:
        owner: unique id of this lease acquisition.
        host: with ``pid``, the process whose death frees the run.
        versions: of the process that computes the run; ``machine`` likewise.
    """

    owner: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    host: str = dataclasses.field(default_factory=machine.host)
    pid: int = dataclasses.field(default_factory=os.getpid)
    versions: Mapping[str, str] = dataclasses.field(default_factory=machine.versions)
    machine: str = dataclasses.field(default_factory=machine.summary)


def is_held(status: str, host: str, pid: int, beat: float) -> bool:
    """Return True if a run has a live owner.

    >>> is_held("running", machine.host(), os.getpid(), time.time())
    True
    >>> is_held("running", "elsewhere", 1, time.time() - 2 * STALE_SECONDS)
    False
    """
    if status != "running":
        return False
    if host == machine.host() and machine.is_alive(pid) is False:
        return False
    return time.time() - beat < STALE_SECONDS


def acquire(store: Store, key: str, holder: Holder | None = None) -> Lease | None:
    """Acquire the lease of a run that waits or whose owner is dead; None if not available.

    The holder is this process by default.

    Measurements of a dead owner after its last checkpoint are deleted, since the run resumes there
    and measures them again. A run begun with another version of Python, torch or normkit restarts:
    half a run of each would be comparable with neither.
    """
    holder = holder or Holder()
    with guarded(store.path), transaction(store.connection):
        row = store.connection.execute(
            "SELECT id, status, host, pid, beat, versions FROM runs WHERE key = ?", (key,)
        ).fetchone()
        if row is None or row["status"] in ("done", "diverged", "failed"):
            return None
        if is_held(row["status"], row["host"], row["pid"], row["beat"]):
            return None
        run = int(row["id"])
        before = json.loads(row["versions"])
        if any(before.get(name) != holder.versions.get(name) for name in COMPARABLE):
            store.connection.execute("DELETE FROM checkpoints WHERE run = ?", (run,))
        saved = store.connection.execute(
            "SELECT step FROM checkpoints WHERE run = ?", (run,)
        ).fetchone()
        step = int(saved["step"]) if saved else 0
        for table in ("metrics", "vectors"):
            store.connection.execute(f"DELETE FROM {table} WHERE run = ? AND step > ?", (run, step))
        store.connection.execute(
            "UPDATE runs SET status = 'running', owner = ?, host = ?, pid = ?, beat = ?, step = ?, "
            "versions = ?, machine = ? WHERE id = ?",
            (
                holder.owner,
                holder.host,
                holder.pid,
                time.time(),
                step,
                json.dumps(dict(holder.versions)),
                holder.machine,
                run,
            ),
        )
    return Lease(store, run, holder.owner)


class Lease:
    """The right to write one run, from :func:`acquire`.

    One created again from its run's number and its owner is equivalent: each write asks the store
    whether the lease is still held.
    """

    def __init__(self, store: Store, run: int, owner: str) -> None:
        self._store = store
        self._run = run
        self._owner = owner

    @property
    def run(self) -> int:
        """The number of the run in the store."""
        return self._run

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Open a transaction in which the lease is known to be ours."""
        with guarded(self._store.path), transaction(self._store.connection):
            changed = self._store.connection.execute(
                "UPDATE runs SET beat = ? WHERE id = ? AND owner = ? AND status = 'running'",
                (time.time(), self._run, self._owner),
            ).rowcount
            if changed == 0:
                raise LeaseLostError
            yield

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Send heartbeats in the meantime, also during steps that take minutes."""
        done = threading.Event()
        thread = threading.Thread(
            target=_beat, args=(self._store.path, self._run, self._owner, done), daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def beat(self) -> None:
        """Send one heartbeat; :meth:`beating` sends them regularly."""
        with guarded(self._store.path):
            self._store.connection.execute(BEAT, (time.time(), self._run, self._owner))

    def record(
        self,
        step: int,
        epoch: int,
        metrics: Mapping[str, float | None],
        vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Record the measurements of a step, and that the run has reached it."""
        with self._writing():
            connection = self._store.connection
            connection.execute("UPDATE runs SET step = ? WHERE id = ?", (step, self._run))
            connection.executemany(
                "INSERT OR REPLACE INTO metrics (run, name, step, epoch, value) "
                "VALUES (?, ?, ?, ?, ?)",
                [(self._run, name, step, epoch, value) for name, value in metrics.items()],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO vectors (run, name, step, data) VALUES (?, ?, ?, ?)",
                [
                    (self._run, name, step, json.dumps(list(data)))
                    for name, data in (vectors or {}).items()
                ],
            )

    def checkpoint(self, step: int, state: bytes) -> None:
        """Save the state from which the run can resume, replacing the previous one."""
        with self._writing():
            self._store.connection.execute(
                "INSERT OR REPLACE INTO checkpoints (run, step, state) VALUES (?, ?, ?)",
                (self._run, step, state),
            )

    def resume(self) -> bytes | None:
        """Return the last checkpoint, None if the run starts from the beginning."""
        with guarded(self._store.path):
            row = self._store.connection.execute(
                "SELECT state FROM checkpoints WHERE run = ?", (self._run,)
            ).fetchone()
        return bytes(row["state"]) if row else None

    def finish(self, *, seconds: float, diverged_step: int | None) -> None:
        """Record the run as finished, and delete its checkpoint."""
        status = "done" if diverged_step is None else "diverged"
        self._end(status, seconds=seconds, diverged_step=diverged_step)

    def fail(self, error: str) -> None:
        """Record the run as failed, with the error."""
        self._end("failed", error=error)

    def release(self) -> None:
        """Return the run unfinished; it resumes from its checkpoint."""
        self._end("waiting")

    def _end(
        self,
        status: str,
        *,
        seconds: float = 0.0,
        diverged_step: int | None = None,
        error: str = "",
    ) -> None:
        finished = None if status == "waiting" else time.time()
        with self._writing():
            connection = self._store.connection
            connection.execute(
                "UPDATE runs SET status = ?, seconds = ?, diverged_step = ?, error = ?, "
                "finished = ?, owner = '' WHERE id = ?",
                (status, seconds, diverged_step, error, finished, self._run),
            )
            if status in ("done", "diverged"):
                connection.execute("DELETE FROM checkpoints WHERE run = ?", (self._run,))


def _beat(path: Path, run: int, owner: str, done: threading.Event) -> None:
    # A connection of its own: SQLite's may not be shared between threads.
    connection = open_database(path, create=False, check=False)
    try:
        while not done.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # a missed beat is no reason to lose the run
                connection.execute(BEAT, (time.time(), run, owner))
    finally:
        connection.close()
