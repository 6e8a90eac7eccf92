"""Studies in worker processes: finished, killed, interrupted, shared."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from normkit.errors import OptionError
from normkit.lab import runner, worker
from normkit.lab.claims.study import TEST, WITH, WITHOUT, Endpoint, Plan, Scale, define
from normkit.lab.config import RunConfig
from normkit.lab.executors import EndedJob, LocalPool
from normkit.lab.judge import judge
from normkit.lab.leases import acquire
from normkit.lab.progress import Progress
from normkit.lab.runner import work
from normkit.lab.store import Store
from tests.lab.claims.invented import WORDS

Make = Callable[..., RunConfig]
posix = pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")


class Inline:
    """An executor that does each job at once, in this process."""

    def __init__(self) -> None:
        self.ended: list[EndedJob] = []
        self.stopping = False

    @property
    def free(self) -> int:
        return 0 if self.ended else 1

    @property
    def busy(self) -> int:
        return len(self.ended)

    def submit(self, argument: str) -> None:
        self.ended.append(EndedJob(argument, worker.run(argument, lambda: self.stopping)))

    def wait(self, seconds: float) -> list[EndedJob]:
        ended, self.ended = self.ended, []
        return ended

    def stop(self) -> None:
        self.stopping = True

    def close(self) -> None:
        pass


def plan(store: Store, *configs: RunConfig) -> list[str]:
    for config in configs:
        store.add(config)
    return [config.key for config in configs]


def statuses(store: Store, keys: list[str]) -> list[str]:
    state = store.progress(keys)
    return [state[key][0] for key in keys]


def owner(store: Store, key: str) -> int:
    row = store.connection.execute(
        "SELECT pid, step FROM runs WHERE key = ? AND status = 'running'", (key,)
    ).fetchone()
    return int(row["pid"]) if row and row["step"] > 0 else 0


def test_only_unfinished_runs_are_trained(store: Store, make_config: Make) -> None:
    keys = plan(store, make_config(seed=0), make_config(seed=1), make_config(seed=2, lr=1e20))
    first = work(store, keys[:2], Inline())
    assert first.finished == keys[:2]
    seen: list[Progress] = []
    second = work(store, keys, Inline(), on_progress=seen.append)
    assert (second.known, second.finished, second.failed) == (2, keys[2:], [])
    assert seen[-1] == Progress(3, 3)
    assert set(seen[-1].shares.values()) == {1.0}
    third = work(store, keys, Inline())
    assert (third.known, third.finished) == (3, [])


class Watched:
    """An executor with room for two, which ends the older one; it notes what ran at once."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.together: list[list[str]] = []

    @property
    def free(self) -> int:
        return 2 - len(self.running)

    @property
    def busy(self) -> int:
        return len(self.running)

    def submit(self, argument: str) -> None:
        self.running.append(argument)
        self.together.append([worker.key_of(each) for each in self.running])

    def wait(self, seconds: float) -> list[EndedJob]:
        argument = self.running.pop(0)
        return [EndedJob(argument, worker.run(argument, lambda: False))]

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_nothing_runs_beside_a_measurement_of_time(store: Store, make_config: Make) -> None:
    timed = [make_config(kind="timing", seed=seed, drop_last=False) for seed in range(2)]
    trained = [make_config(seed=seed) for seed in range(3)]
    keys = plan(store, trained[0], *timed, *trained[1:])
    executor = Watched()
    assert work(store, keys, executor).failed == []
    alone = {config.key for config in timed}
    assert executor.together[:2] == [[timed[0].key], [timed[1].key]]
    assert all(len(keys) == 1 for keys in executor.together if alone & set(keys))
    assert any(len(keys) == 2 for keys in executor.together)


def test_failed_runs_are_retried_by_next_call(store: Store, make_config: Make) -> None:
    keys = plan(store, make_config(model="no-such-model"), make_config())
    assert work(store, keys, Inline()).failed == keys[:1]
    assert statuses(store, keys) == ["failed", "done"]
    assert work(store, keys, Inline()).failed == keys[:1]


def test_runs_of_other_processes_are_awaited(
    store: Store, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = plan(store, make_config(seed=0), make_config(seed=1))
    lease = acquire(store, keys[0])
    assert lease is not None
    ticks = 0

    def on_progress(now: Progress) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 4:  # the other one finishes
            lease.finish(seconds=1, diverged_step=None)

    summary = work(store, keys, Inline(), on_progress=on_progress)
    assert summary.finished == keys[1:]
    assert statuses(store, keys) == ["done", "done"]


@pytest.mark.usefixtures("forked_workers")
@posix
def test_run_resumes_after_worker_death(store: Store, make_config: Make) -> None:
    long, short = make_config(seed=0, epochs=40), make_config(seed=1)
    keys = plan(store, long, short)
    killed: set[int] = set()

    def on_progress(now: Progress) -> None:
        pid = owner(store, long.key)
        if pid and not killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)

    with LocalPool(worker.run, workers=2) as pool:
        summary = work(store, keys, pool, on_progress=on_progress)
    assert killed and not summary.failed
    assert statuses(store, keys) == ["done", "done"]


class Dying(Inline):
    """Workers that die when their run has come to the next of these steps; then one that lives."""

    def __init__(self, store: Store, *steps: int) -> None:
        super().__init__()
        self.store, self.steps = store, list(steps)

    def submit(self, argument: str) -> None:
        if not self.steps:
            super().submit(argument)
            return
        lease = acquire(self.store, worker.key_of(argument))
        assert lease is not None
        lease.record(self.steps.pop(0), 0, {"loss": 1.0})
        lease.release()  # as the next one would find it
        self.ended.append(EndedJob(argument, None))


def test_run_without_progress_fails_on_second_death(store: Store, make_config: Make) -> None:
    keys = plan(store, make_config())
    assert work(store, keys, Dying(store, 3, 3, 4)).failed == keys
    run = store.get(keys[0])
    assert run is not None
    assert "died 2 times" in run.error and "without getting past step 3" in run.error


def test_run_with_progress_survives_many_deaths(store: Store, make_config: Make) -> None:
    keys = plan(store, make_config())
    assert work(store, keys, Dying(store, 1, 2, 3, 5, 5)).failed == keys
    assert work(store, keys, Dying(store, 1, 2, 3, 5, 6)).finished == keys


def test_what_failed_before_comes_last(store: Store, make_config: Make) -> None:
    keys = plan(store, make_config(model="no-such-model"), make_config(), make_config(seed=1))
    work(store, keys[:1], Inline())
    order: list[str] = []
    work(store, keys, Inline(), on_run=lambda run: order.append(run.config.key))
    assert order == [*keys[1:], keys[0]]


@pytest.mark.usefixtures("forked_workers")
@posix
def test_idle_worker_that_dies_is_replaced(store: Store, make_config: Make) -> None:
    keys = plan(store, make_config(seed=0), make_config(seed=1))
    with LocalPool(worker.run, workers=1) as pool:
        assert work(store, keys[:1], pool).finished == keys[:1]
        (idle,) = multiprocessing.active_children()
        os.kill(idle.pid or 0, signal.SIGKILL)
        idle.join()
        assert work(store, keys, pool).finished == keys[1:]


@pytest.mark.usefixtures("forked_workers")
def test_ctrl_c_keeps_checkpoints(store: Store, make_config: Make) -> None:
    config = make_config(epochs=4000)
    keys = plan(store, config, make_config(seed=1, epochs=4000))
    interrupted = False

    def on_progress(now: Progress) -> None:
        nonlocal interrupted
        if owner(store, config.key) and not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    with LocalPool(worker.run, workers=1) as pool:
        summary = work(store, keys, pool, on_progress=on_progress)
    assert summary.interrupted
    assert summary.finished == []
    assert statuses(store, keys) == ["waiting", "waiting"]
    run = store.get(config.key)
    assert run is not None
    assert run.step > 0
    (saved,) = store.connection.execute("SELECT step FROM checkpoints").fetchone()
    assert saved >= run.step - config.loss_every


class Pair:
    """An executor whose two jobs end at the same moment, and one that dies after Ctrl-C."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self.free = 3
        self.waits = 0

    @property
    def busy(self) -> int:
        return len(self.given)

    def submit(self, argument: str) -> None:
        self.free -= 1
        self.given.append(argument)

    def wait(self, seconds: float) -> list[EndedJob]:
        self.waits += 1
        assert self.waits < 20, "waits for jobs that have ended"
        now = self.given[:2] if self.waits == 1 else list(self.given)
        self.given = [each for each in self.given if each not in now]
        return [EndedJob(each, "held" if self.waits == 1 else None) for each in now]

    def stop(self) -> None:
        self.free = 3

    def close(self) -> None:
        pass


def test_ctrl_c_between_two_jobs_that_ended(
    store: Store, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = plan(store, *(make_config(seed=seed) for seed in range(3)))
    get, asked = store.get, []

    def interrupted(key: str) -> Any:
        asked.append(key)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return get(key)

    monkeypatch.setattr(store, "get", interrupted)
    pair = Pair()
    assert work(store, keys, pair).interrupted
    assert pair.given == []  # what died meanwhile is left to the next call


@posix
def test_worker_ignores_ctrl_c_from_start() -> None:
    with LocalPool(blocked, workers=1) as pool:
        pool.submit("")
        (end,) = next(ends for _ in range(200) if (ends := pool.wait(1.0)))
    assert end.result == "SIGINT"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def blocked(argument: str, stopping: Callable[[], bool]) -> str:
    found = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return ", ".join(each.name for each in found if each == signal.SIGINT)


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"workers": 1, "threads": 0}])
def test_pool_needs_a_worker_and_a_thread(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="at least 1"):
        LocalPool(worker.run, **wrong)


def test_claim_on_two_data_sets(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {WITH: {"norm": "batch"}, WITHOUT: {"data": "fashion-mnist-lit", "norm": "batch"}}
    claim = define(
        key="C0",
        title="",
        statement="",
        sources=(),
        prediction="",
        plan=Plan(
            {"quick": Scale(1, 256, 100, 1)}, arms, {"model": "lenet5", "batch_size": 64, "lr": 0.1}
        ),
        decides={"gain": Endpoint("How much?", TEST.at(WITH) - TEST.at(WITHOUT), matters=1)},
        sentence="",
        **WORDS,
    )
    loaded = runner.datasets([claim], "quick")
    assert list(loaded) == ["fashion-mnist", "fashion-mnist-lit"]
    monkeypatch.setattr(worker, "load", loaded.__getitem__)  # both are in this process already
    keys = runner.plan(store, [claim], "quick", loaded)
    assert work(store, keys, Inline()).finished == keys
    losses = [run.run.by_epoch("epoch_train_loss") for run in store.planned("C0", "quick")]
    assert losses[0] != losses[1]
    origin = loaded["fashion-mnist"].origin
    assert judge(store, "quick", [claim])[0].data.startswith(
        f"Fashion-MNIST ({origin}); Fashion-MNIST, lit ({origin}): 256 training and 100 test images"
    )
