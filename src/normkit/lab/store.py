"""The store: every run, with its progress, in one SQLite file.

A run's row is written when it is planned; its metrics at each recorded step, in a transaction each;
a checkpoint (model, optimizer, generators) as often as a twentieth of the time allows, which for
small networks is nearly every step. A killed process loses the steps after its last checkpoint; the
run resumes there and repeats them bit for bit.

A worker owns a run by a *lease*, see :mod:`normkit.lab.leases`. This file plans and reads;
only a lease writes results.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from normkit.lab.config import RunConfig
from normkit.lab.database import guarded, open_database, transaction
from normkit.lab.read_only import open_reading
from normkit.lab.runs import Part, Planned, Run, Status, read_run

__all__ = ["Store"]


class Store:
    """An open store file. Use it in ``with``, or call :meth:`close`.

    ``read_only`` changes neither the file nor its folder, and never creates a file; see
    :mod:`normkit.lab.read_only`. ``check`` as in :func:`normkit.lab.database.open_database`.

    Raises:
        StoreError: the file is missing and ``create`` is false, is damaged, is not ours, or comes
            from a newer normkit; see :func:`normkit.lab.database.open_database`.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> run = RunConfig(model="lenet5", norm="batch", lr=0.1, train_images=512, test_images=256,
    ...                 batch_size=128, epochs=2, seed=0)
    >>> with Store(Path(folder.name) / "lab.sqlite") as store:
    ...     store.plan("C1", "quick", [("with BN", run)])
    ...     [(planned.arm, planned.run.status) for planned in store.planned("C1", "quick")]
    [('with BN', 'waiting')]
    >>> folder.cleanup()
    """

    def __init__(
        self, path: Path, *, create: bool = True, check: bool = True, read_only: bool = False
    ) -> None:
        self.path = Path(path)
        self.connection = (
            open_reading(self.path)
            if read_only
            else open_database(self.path, create=create, check=check)
        )

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        self.connection.close()

    # Planning -------------------------------------------------------------------------------

    def plan(self, claim: str, preset: str, runs: Sequence[tuple[str, RunConfig]]) -> None:
        """Record the runs that a claim needs, by arm; runs that exist already are shared."""
        with guarded(self.path), transaction(self.connection):
            self.connection.execute(
                "DELETE FROM plans WHERE claim = ? AND preset = ?", (claim, preset)
            )
            for position, (arm, config) in enumerate(runs):
                identity = self._add(config)
                self.connection.execute(
                    "INSERT INTO plans (claim, preset, position, arm, run) VALUES (?, ?, ?, ?, ?)",
                    (claim, preset, position, arm, identity),
                )
            self._note(f"preset:{claim}", preset)

    def add(self, config: RunConfig) -> None:
        """Add a run that belongs to no claim."""
        with guarded(self.path), transaction(self.connection):
            self._add(config)

    def _add(self, config: RunConfig) -> int:
        key = config.key
        self.connection.execute(
            "INSERT INTO runs (key, config, seed, steps, created) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (key) DO NOTHING",
            (key, config.to_json(), config.seed, config.steps, time.time()),
        )
        row = self.connection.execute("SELECT id FROM runs WHERE key = ?", (key,)).fetchone()
        return int(row["id"])

    def retry_failed(self, keys: Iterable[str]) -> None:
        """Reset failed runs to their beginning, since their saved state may be the cause."""
        with guarded(self.path), transaction(self.connection):
            failed = [
                row["id"]
                for key in keys
                for row in self.connection.execute(
                    "SELECT id FROM runs WHERE key = ? AND status = 'failed'", (key,)
                )
            ]
            for table in ("checkpoints", "metrics", "vectors"):
                self.connection.executemany(
                    f"DELETE FROM {table} WHERE run = ?", [(identity,) for identity in failed]
                )
            self.connection.executemany(
                "UPDATE runs SET status = 'waiting', error = '', step = 0, seconds = 0, "
                "diverged_step = NULL, finished = NULL WHERE id = ?",
                [(identity,) for identity in failed],
            )

    # Facts ----------------------------------------------------------------------------------

    def note(self, name: str, value: str) -> None:
        """Record a fact about the store, such as the preset of the last call."""
        with guarded(self.path), transaction(self.connection):
            self._note(name, value)

    def _note(self, name: str, value: str) -> None:
        self.connection.execute(
            "INSERT INTO facts (name, value) VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )

    def fact(self, name: str) -> str | None:
        """Return a fact, None if it was never recorded."""
        with guarded(self.path):
            row = self.connection.execute(
                "SELECT value FROM facts WHERE name = ?", (name,)
            ).fetchone()
        return str(row["value"]) if row else None

    # Reading --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read from one moment inside the block, whatever other processes write."""
        with guarded(self.path):
            self.connection.execute("BEGIN")
        try:
            yield
        finally:
            self.connection.execute("ROLLBACK")

    def progress(self, keys: Iterable[str]) -> dict[str, tuple[Status, int, int]]:
        """Return each run's status, the step it has reached, and its number of steps."""
        with guarded(self.path):
            rows = self.connection.execute("SELECT key, status, step, steps FROM runs").fetchall()
        wanted = set(keys)
        return {
            row["key"]: (row["status"], row["step"], row["steps"])
            for row in rows
            if row["key"] in wanted
        }

    def times(self, keys: Iterable[str]) -> dict[str, tuple[float, bool]]:
        """Return the seconds of each run with a result, and whether it took all its steps."""
        with guarded(self.path):
            rows = self.connection.execute(
                "SELECT key, seconds, status FROM runs WHERE status IN ('done', 'diverged')"
            ).fetchall()
        wanted = set(keys)
        return {
            row["key"]: (row["seconds"], row["status"] == "done")
            for row in rows
            if row["key"] in wanted
        }

    def planned(
        self, claim: str, preset: str, known: dict[str, Run] | None = None
    ) -> list[Planned]:
        """Read the runs of a claim, in the order planned, whatever their status.

        Args:
            known: runs read before, by key: they are not read again, and the others are added.
        """
        known = {} if known is None else known
        with guarded(self.path):
            rows = self.connection.execute(
                "SELECT plans.arm AS arm, runs.* FROM plans JOIN runs ON runs.id = plans.run "
                "WHERE claim = ? AND preset = ? ORDER BY position",
                (claim, preset),
            ).fetchall()
            for row in rows:
                if row["key"] not in known:
                    known[row["key"]] = read_run(self.connection, row, self.path)
        return [Planned(row["arm"], known[row["key"]]) for row in rows]

    def plans(self) -> list[tuple[str, str]]:
        """Return all planned pairs (claim, preset)."""
        with guarded(self.path):
            rows = self.connection.execute(
                "SELECT DISTINCT claim, preset FROM plans ORDER BY claim, preset"
            ).fetchall()
        return [(row["claim"], row["preset"]) for row in rows]

    def runs(self) -> dict[str, Run]:
        """Read all runs, by key, in the order in which they were first planned."""
        with guarded(self.path):
            rows = self.connection.execute("SELECT * FROM runs ORDER BY id").fetchall()
            return {row["key"]: read_run(self.connection, row, self.path) for row in rows}

    def run_keys(self) -> list[str]:
        """Return the keys of all runs, in the order in which they were first planned."""
        with guarded(self.path):
            rows = self.connection.execute("SELECT key FROM runs ORDER BY id").fetchall()
        return [row["key"] for row in rows]

    def configs(self, keys: Iterable[str]) -> dict[str, RunConfig]:
        """Read the descriptions of these runs, by key."""
        with guarded(self.path):
            rows = self.connection.execute("SELECT key, config FROM runs").fetchall()
        wanted = set(keys)
        return {
            row["key"]: RunConfig.from_json(row["config"]) for row in rows if row["key"] in wanted
        }

    def parts(self) -> list[Part]:
        """Return the rows of every plan, in order."""
        with guarded(self.path):
            rows = self.connection.execute(
                "SELECT claim, preset, position, arm, key FROM plans "
                "JOIN runs ON runs.id = plans.run ORDER BY claim, preset, position"
            ).fetchall()
        return [Part(*row) for row in rows]

    def last_preset(self, claim: str) -> str | None:
        """Return the preset at which this claim was last planned, None if it never was.

        A store that an older version filled does not say; there it is the preset of whose runs
        one ended last.
        """
        noted = self.fact(f"preset:{claim}")
        if noted is not None:
            return noted
        with guarded(self.path):
            row = self.connection.execute(
                "SELECT preset FROM plans JOIN runs ON runs.id = plans.run WHERE claim = ? "
                "GROUP BY preset ORDER BY max(finished) DESC NULLS LAST, preset LIMIT 1",
                (claim,),
            ).fetchone()
        return str(row["preset"]) if row else None

    def get(self, key: str) -> Run | None:
        """Return the run with this key, None if there is none."""
        with guarded(self.path):
            row = self.connection.execute("SELECT * FROM runs WHERE key = ?", (key,)).fetchone()
            return read_run(self.connection, row, self.path) if row else None
