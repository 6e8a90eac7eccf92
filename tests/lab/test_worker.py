"""Runs that are killed, stopped and taken up again, by real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from normkit.lab import worker
from normkit.lab.config import RunConfig
from normkit.lab.runs import Run
from normkit.lab.store import Store

Make = Callable[..., RunConfig]

KILLED_AT = 16  # the end of an epoch, evaluated already; the checkpoint is a step older

WORK = """
import itertools, os, signal, sys, torch
from pathlib import Path
from normkit.lab import trainer, worker
torch.set_num_threads(1)
trainer.CHECKPOINT_SHARE = float("inf")  # one after each step, however long the disk takes
steps = itertools.count(1)

def stopping():
    if next(steps) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return False

worker.run(worker.argument(Path(sys.argv[1]), sys.argv[2]), stopping)
"""


def timeless(run: Run | None) -> object:
    assert run is not None
    metrics = {name: points for name, points in run.metrics.items() if name != "epoch_seconds"}
    return run.config, run.status, run.step, metrics, run.vectors


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_killed_run_resumes_bit_for_bit(tmp_path: Path, make_config: Make) -> None:
    config = make_config(
        epochs=12, momentum=0.9, lr=0.02, loss_every=2, probes=(("activations", 5),)
    )
    paths = [tmp_path / "killed.sqlite", tmp_path / "whole.sqlite"]
    for path in paths:
        with Store(path) as store:
            store.add(config)
    command = [sys.executable, "-c", WORK, str(paths[0]), config.key, str(KILLED_AT)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Store(paths[0]) as store:
        read = "SELECT max(step) FROM checkpoints"
        assert store.connection.execute(read).fetchone()[0] == KILLED_AT - 1
        cut = store.get(config.key)
        assert cut is not None
        assert (cut.status, cut.step) == ("running", KILLED_AT)
        # Everything recorded up to the kill is there, though the checkpoint is older.
        assert cut.metrics["train_loss"][-1][0] == KILLED_AT
        assert cut.metrics["test_accuracy"][-1][0] == KILLED_AT
    for path in paths:
        assert worker.run(worker.argument(path, config.key), lambda: False) == "done"
    with Store(paths[0]) as resumed, Store(paths[1]) as whole:
        assert timeless(resumed.get(config.key)) == timeless(whole.get(config.key))
        assert resumed.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_stopped_run_can_resume(store: Store, make_config: Make) -> None:
    config = make_config()
    store.add(config)
    argument = worker.argument(store.path, config.key)
    asked: list[int] = []

    def stopping() -> bool:
        asked.append(1)
        return len(asked) >= 3

    assert worker.run(argument, stopping) == "stopped"
    run = store.get(config.key)
    assert run is not None
    assert (run.status, run.step) == ("waiting", 3)
    assert worker.run(argument, lambda: False) == "done"
    assert worker.run(argument, lambda: False) == "held"


def test_error_belongs_to_its_run(store: Store, make_config: Make) -> None:
    config = make_config(model="no-such-model")
    store.add(config)
    assert worker.run(worker.argument(store.path, config.key), lambda: False) == "failed"
    run = store.get(config.key)
    assert run is not None
    assert run.status == "failed"
    assert "no-such-model" in run.error


def test_another_edition_of_the_data_is_refused(store: Store, make_config: Make) -> None:
    edition = "full" if make_config().edition == "subset" else "subset"
    config = make_config(edition=edition)
    store.add(config)
    assert worker.run(worker.argument(store.path, config.key), lambda: False) == "failed"
    run = store.get(config.key)
    assert run is not None
    assert "normkit data fetch" in run.error


def test_diverged_run_is_stored_as_such(store: Store, make_config: Make) -> None:
    config = make_config(norm="none", lr=1e20)
    store.add(config)
    assert worker.run(worker.argument(store.path, config.key), lambda: False) == "diverged"
    run = store.get(config.key)
    assert run is not None
    assert run.finished_training
    assert run.diverged_step is not None
    assert run.by_epoch("test_accuracy") == (0.1, 0.1)
