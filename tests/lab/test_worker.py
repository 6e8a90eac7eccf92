"""Runs that are killed, stopped and taken up again, by real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from normkit.lab import worker
from normkit.lab.config import RunConfig
from normkit.lab.runs import Run
from normkit.lab.store import Store

Make = Callable[..., RunConfig]

WORK = """
import sys, torch
from pathlib import Path
from normkit.lab import training, worker
torch.set_num_threads(1)
train = training.train
worker.train = lambda *a, **k: train(*a, checkpoint_seconds=0.05, **k)
print("ready", flush=True)
print(worker.run(worker.argument(Path(sys.argv[1]), sys.argv[2]), lambda: False), flush=True)
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
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(paths[0]), config.key], stdout=subprocess.PIPE, text=True
    )
    with Store(paths[0]) as store:
        deadline = time.monotonic() + 60
        read = "SELECT (SELECT max(step) FROM checkpoints) AS saved, step FROM runs"
        while True:
            saved, step = store.connection.execute(read).fetchone()
            if saved and saved >= 5 and step > saved:
                break
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)  # so that looking takes nothing from what is looked at
        process.send_signal(signal.SIGKILL)
        process.communicate()
        cut = store.get(config.key)
        assert cut is not None
        assert cut.status == "running"
        assert 5 <= cut.step < config.steps
        # Everything recorded up to the kill is there, though the checkpoint is older.
        assert cut.metrics["train_loss"][-1][0] >= step - config.loss_every
    for path in paths:
        assert worker.run(worker.argument(path, config.key), lambda: False) == "done"
    with Store(paths[0]) as killed, Store(paths[1]) as whole:
        assert timeless(killed.get(config.key)) == timeless(whole.get(config.key))
        assert killed.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


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
