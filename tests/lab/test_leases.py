from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from normkit.lab import leases, machine
from normkit.lab.config import RunConfig
from normkit.lab.leases import Holder, LeaseLostError, acquire
from normkit.lab.store import Store

Make = Callable[..., RunConfig]

GRAB = """
import json, sys
from pathlib import Path
from normkit.lab.leases import acquire
from normkit.lab.store import Store
print("ready", flush=True)
sys.stdin.readline()
with Store(Path(sys.argv[1])) as store:
    keys = [row["key"] for row in store.connection.execute("SELECT key FROM runs ORDER BY id")]
    print(json.dumps([key for key in keys if acquire(store, key)]), flush=True)
    sys.stdin.readline()
"""


def test_two_processes_never_take_the_same_run(store: Store, make_config: Make) -> None:
    keys = [make_config(seed=seed).key for seed in range(150)]
    for seed in range(150):
        store.add(make_config(seed=seed))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", GRAB, str(store.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        taken = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
        # While they live their runs are theirs.
        assert not any(acquire(store, key) for key in keys)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert sorted(taken[0] + taken[1]) == sorted(keys)
    assert not set(taken[0]) & set(taken[1])
    # Now they are dead, and each run can be had at once.
    assert all(acquire(store, key) for key in keys)


def test_silent_remote_owner_loses_lease(
    store: Store, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    store.add(config)
    monkeypatch.setattr(machine, "host", lambda: "elsewhere")
    first = acquire(store, config.key)
    assert first is not None
    first.record(1, 0, {"train_loss": 1.0})
    first.checkpoint(1, b"state")
    first.record(2, 0, {"train_loss": 0.9}, {"q": [1.0]})
    monkeypatch.undo()
    assert acquire(store, config.key) is None  # it was heard of just now
    late = time.time() + leases.STALE_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: late)
    second = acquire(store, config.key)
    assert second is not None
    run = store.get(config.key)
    assert run is not None
    # What came after the checkpoint is measured again by the successor.
    assert run.metrics["train_loss"] == ((1, 0, 1.0),)
    assert run.vectors == {}
    assert second.resume() == b"state"
    for write in (
        lambda: first.record(3, 0, {"train_loss": 0.8}),
        lambda: first.checkpoint(3, b"mine"),
        lambda: first.finish(seconds=1, diverged_step=None),
        first.release,
    ):
        with pytest.raises(LeaseLostError):
            write()
    assert second.resume() == b"state"


def test_heartbeat_keeps_lease(
    store: Store, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.02)
    config = make_config()
    store.add(config)
    lease = acquire(store, config.key)
    assert lease is not None
    read = "SELECT beat FROM runs"
    (before,) = store.connection.execute(read).fetchone()
    with lease.beating():
        deadline = time.monotonic() + 10
        while store.connection.execute(read).fetchone()["beat"] <= before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    lease.finish(seconds=0, diverged_step=None)


def test_results_are_not_taken_again(store: Store, make_config: Make) -> None:
    config = make_config()
    store.add(config)
    lease = acquire(store, config.key)
    assert lease is not None
    lease.checkpoint(1, b"state")
    lease.finish(seconds=0, diverged_step=None)
    assert acquire(store, config.key) is None
    assert acquire(store, "unknown") is None
    (left,) = store.connection.execute("SELECT count(*) FROM checkpoints").fetchone()
    assert left == 0


def test_run_of_another_version_restarts(store: Store, make_config: Make) -> None:
    config = make_config()
    store.add(config)
    for torch, kept in (("2.0", 3), ("2.0", 3), ("2.1", None)):
        lease = acquire(store, config.key, Holder(versions={"torch": torch}))
        assert lease is not None
        if kept is None:
            assert lease.resume() is None
            run = store.get(config.key)
            assert run is not None and (run.step, run.metrics) == (0, {})
        else:
            lease.record(kept, 0, {"loss": 1.0})
            lease.checkpoint(kept, b"state")
            assert lease.resume() == b"state"
        lease.release()


def test_released_runs_wait(store: Store, make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    store.add(config)
    lease = acquire(store, config.key)
    assert lease is not None
    lease.release()
    run = store.get(config.key)
    assert run is not None
    assert (run.status, run.finished) == ("waiting", None)
    with Store(tmp_path / "lab.sqlite") as other:
        assert acquire(other, config.key) is not None
