"""Runs that are written through a proxy, as by workers on other machines. No Ray is needed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from normkit.errors import OptionError
from normkit.lab import data, machine, worker
from normkit.lab.config import RunConfig
from normkit.lab.executors import store_proxy
from normkit.lab.executors.store_proxy import RemoteLease, StoreProxy
from normkit.lab.leases import LeaseLostError, acquire
from normkit.lab.runs import Run
from normkit.lab.store import Store

Make = Callable[..., RunConfig]


@pytest.fixture
def proxy(store: Store) -> Iterator[StoreProxy]:
    proxy = StoreProxy(str(store.path), machine.host(), os.getpid())
    yield proxy
    proxy._store.close()


def ask(proxy: StoreProxy) -> Callable[..., Any]:
    return lambda method, *arguments: getattr(proxy, method)(*arguments)


def take(proxy: StoreProxy, key: str, owner: str = "one") -> RemoteLease:
    taken = proxy.take(key, owner, machine.versions(), "elsewhere")
    assert taken is not None
    text, run = taken
    assert RunConfig.from_json(text).key == key
    return RemoteLease(ask(proxy), run, owner)


def results(run: Run | None) -> object:
    assert run is not None
    metrics = {name: points for name, points in run.metrics.items() if name != "epoch_seconds"}
    return run.config, run.status, run.step, run.error, metrics, run.vectors


def test_run_through_proxy_equals_local_run(
    store: Store, proxy: StoreProxy, make_config: Make, tmp_path: Any, dataset: data.Dataset
) -> None:
    config = make_config(probes=(("gradients", 2),), norm="batch")
    store.add(config)
    lease = take(proxy, config.key)
    # Nothing below opens the store again, or looks for data.
    found = worker.attempt(config, lease, lease.stopping, find=lambda name: dataset)
    assert found == "done"
    with Store(tmp_path / "other.sqlite") as other:
        other.add(config)
        assert worker.run(worker.argument(other.path, config.key), lambda: False) == "done"
        assert results(store.get(config.key)) == results(other.get(config.key))
    run = store.get(config.key)
    assert run is not None
    assert run.machine == "elsewhere"


def test_run_is_acquired_once(store: Store, proxy: StoreProxy, make_config: Make) -> None:
    config = make_config()
    store.add(config)
    take(proxy, config.key)
    assert proxy.take(config.key, "two", machine.versions(), "elsewhere") is None
    assert proxy.take("no such run", "two", machine.versions(), "elsewhere") is None
    assert acquire(store, config.key) is None


def test_run_of_dead_worker_resumes_from_checkpoint(
    store: Store, proxy: StoreProxy, make_config: Make
) -> None:
    config = make_config()
    store.add(config)
    lease = take(proxy, config.key)
    lease.checkpoint(2, b"state")
    lease.record(3, 0, {"train_loss": 1.0})
    proxy.release_dead(config.key, "one")
    again = take(proxy, config.key, "two")
    assert again.resume() == b"state"
    run = store.get(config.key)
    assert run is not None
    assert (run.step, run.metrics) == (2, {})
    # The dead one was only cut off, and comes back: it can write no more, and cannot be buried
    # in its successor's place.
    with pytest.raises(LeaseLostError):
        lease.record(4, 0, {"train_loss": 1.0})
    proxy.release_dead(config.key, "one")
    again.record(3, 0, {"train_loss": 2.0})
    # Nor does an error of its own count.
    assert worker.attempt(config, lease, lease.stopping, find=_no_data) == "held"
    run = store.get(config.key)
    assert run is not None
    assert (run.status, run.last("train_loss")) == ("running", 2.0)


def _no_data(name: str) -> data.Dataset:
    raise RuntimeError("no data")


def test_run_of_dead_driver_is_free(store: Store, make_config: Make) -> None:
    config = make_config()
    store.add(config)
    nobody = 2**22 + 1  # above the largest process number of Linux
    proxy = StoreProxy(str(store.path), machine.host(), nobody)
    take(proxy, config.key)
    assert acquire(store, config.key) is not None
    proxy._store.close()


def test_stop_reaches_remote_worker(
    store: Store, make_config: Make, dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_proxy, "ASK_SECONDS", 0.01)
    config = make_config(epochs=4000)
    store.add(config)
    proxy = StoreProxy(str(store.path), machine.host(), os.getpid())
    lock = threading.Lock()
    # SQLite's connection belongs to this thread; a beat of the lease comes from another.
    proxy._store.connection.close()
    proxy._store.connection = _shared(store)

    def ask(method: str, *arguments: Any) -> Any:
        with lock:
            return getattr(proxy, method)(*arguments)

    taken = proxy.take(config.key, "one", machine.versions(), "elsewhere")
    assert taken is not None
    lease = RemoteLease(ask, taken[1], "one")
    threading.Timer(0.3, proxy.stop).start()
    begin = time.monotonic()
    assert worker.attempt(config, lease, lease.stopping, find=lambda name: dataset) == "stopped"
    assert time.monotonic() - begin < 60
    run = store.get(config.key)
    assert run is not None
    assert (run.status, run.step < config.steps) == ("waiting", True)
    proxy._store.close()


def _shared(store: Store) -> Any:
    import sqlite3

    connection = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


def test_another_version_of_torch_is_refused(
    store: Store, proxy: StoreProxy, make_config: Make
) -> None:
    config = make_config()
    store.add(config)
    with pytest.raises(OptionError, match=r"torch 0\.1 on a worker"):
        proxy.take(config.key, "one", machine.versions() | {"torch": "0.1"}, "elsewhere")
    assert acquire(store, config.key) is not None
