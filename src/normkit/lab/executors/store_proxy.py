"""Write to the store from a worker that cannot open it, through a proxy on the store's machine.

The store is one SQLite file on one machine. A :class:`StoreProxy` runs there and carries out the
calls of remote workers; a :class:`RemoteLease` is a worker's side of it, with the interface of a
:class:`~normkit.lab.leases.Lease`. The transport between the two is the caller's, such as Ray in
:mod:`normkit.lab.executors.ray_pool`.

The process that submits the runs owns the leases, by its host and process number: if it dies, no
worker writes any more, and its runs are free at once. It reports dead workers to the proxy.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from normkit.errors import OptionError, message
from normkit.lab import machine
from normkit.lab.leases import COMPARABLE, Holder, Lease, LeaseLostError, acquire
from normkit.lab.schema import guarded
from normkit.lab.store import Store

__all__ = ["RemoteLease", "StoreProxy", "Taken"]

ASK_SECONDS = 1.0
"""How often a worker says that it lives, and learns whether to stop."""

WRITES = ("record", "checkpoint", "finish", "fail", "release")

Taken = tuple[str, int]
"""A run that was taken: its description as JSON, its number in the store."""

Ask = Callable[..., Any]
"""``ask(method, *arguments)`` calls a method of the desk and returns what it returned."""


class StoreProxy:
    """Write to the store on behalf of remote workers.

    All its state is in the store, except the request to stop: a proxy that is restarted continues
    where its predecessor was.

    Args:
        path: of the store.
        host: with ``pid``, the process that holds the leases.
    """

    def __init__(self, path: str, host: str, pid: int) -> None:
        self._store = Store(Path(path), create=False, check=False)
        self._host, self._pid = host, pid
        self._stopping = False

    def take(
        self, key: str, owner: str, versions: Mapping[str, str], where: str, place: str = ""
    ) -> Taken | None:
        """Acquire a run's lease for a worker with these versions; None if it is not available.

        ``where`` is its machine, and ``place`` where on it trainings take place.

        Raises:
            OptionError: the worker's Python, torch or normkit is not the one here. Runs of two
                versions are not comparable, and one store would hold both.
        """
        here = machine.versions()
        other = [name for name in COMPARABLE if versions.get(name) != here[name]]
        if other:
            raise OptionError(
                message(
                    "the same versions on all machines of a study: " + ", ".join(COMPARABLE),
                    " and ".join(
                        f"{name} {versions.get(name)} on a worker ({where}), {here[name]} here"
                        for name in other
                    ),
                    "install the same versions on every node of the cluster",
                )
            )
        stored = self._store.get(key)
        if stored is None:
            return None
        if place and stored.config.kind == "training":
            where = f"{where}; {place}"
        lease = acquire(self._store, key, Holder(owner, self._host, self._pid, versions, where))
        if lease is None:
            return None
        return stored.config.to_json(), lease.run

    def resume(self, run: int, owner: str) -> bytes | None:
        """Return the run's last checkpoint."""
        return Lease(self._store, run, owner).resume()

    def write(
        self, run: int, owner: str, what: str, arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> bool:
        """Call one of the ``WRITES`` of a lease; return False if the lease is lost."""
        assert what in WRITES
        try:
            getattr(Lease(self._store, run, owner), what)(*arguments, **named)
        except LeaseLostError:
            return False
        return True

    def beat(self, run: int, owner: str) -> bool:
        """Keep a lease alive; return whether the worker is to stop."""
        Lease(self._store, run, owner).beat()
        return self._stopping

    def release_dead(self, run_key: str, owner: str) -> None:
        """Release the lease of a dead worker; its run resumes from its checkpoint."""
        with guarded(self._store.path):
            row = self._store.connection.execute(
                "SELECT id FROM runs WHERE key = ?", (run_key,)
            ).fetchone()
        if row is not None:
            self.write(int(row["id"]), owner, "release", (), {})

    def holds(self, run_key: str, owner: str) -> bool:
        """Return True if this owner holds the run's lease."""
        with guarded(self._store.path):
            row = self._store.connection.execute(
                "SELECT 1 FROM runs WHERE key = ? AND owner = ?", (run_key, owner)
            ).fetchone()
        return row is not None

    def stop(self) -> None:
        """Tell all workers to stop, from now on."""
        self._stopping = True


class RemoteLease:
    """The right to write one run, from another machine, with the interface of a Lease.

    Args:
        ask: reaches the desk. It is called by two threads at once.
        run: the number of the run, from :meth:`StoreProxy.take`.
        owner: under which it was taken.
    """

    def __init__(self, ask: Ask, run: int, owner: str) -> None:
        self._ask = ask
        self._run = run
        self._owner = owner
        self._stop = threading.Event()

    def stopping(self) -> bool:
        """True if the proxy asked to stop at the last heartbeat."""
        return self._stop.is_set()

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Send heartbeats in the meantime, and receive the request to stop."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(ASK_SECONDS):
                with contextlib.suppress(Exception):  # a missed beat is no reason to lose the run
                    if self._ask("beat", self._run, self._owner):
                        self._stop.set()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def record(
        self,
        step: int,
        epoch: int,
        metrics: Mapping[str, float | None],
        vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Record the measurements of a step."""
        self._write("record", step, epoch, metrics, vectors)

    def checkpoint(self, step: int, state: bytes) -> None:
        """Save the state from which the run can resume."""
        self._write("checkpoint", step, state)

    def resume(self) -> bytes | None:
        """Return the last checkpoint, None if the run starts from the beginning."""
        state: bytes | None = self._ask("resume", self._run, self._owner)
        return state

    def finish(self, *, seconds: float, diverged_step: int | None) -> None:
        """Record the run as finished."""
        self._write("finish", seconds=seconds, diverged_step=diverged_step)

    def fail(self, error: str) -> None:
        """Record the run as failed, with the error."""
        self._write("fail", error)

    def release(self) -> None:
        """Return the run unfinished."""
        self._write("release")

    def _write(self, what: str, *arguments: Any, **named: Any) -> None:
        if not self._ask("write", self._run, self._owner, what, arguments, named):
            raise LeaseLostError
