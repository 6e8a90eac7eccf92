"""Studies on a Ray cluster of two nodes on this machine: killed, interrupted, refused."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from normkit.errors import NormkitError, OptionError
from normkit.lab import data, worker
from normkit.lab.config import RunConfig
from normkit.lab.executors import EndedJob
from normkit.lab.executors.ray_pool import RayPool
from normkit.lab.runner import Progress, work
from normkit.lab.runs import Run
from normkit.lab.store import Store

Make = Callable[..., RunConfig]

# A real cluster starts ten processes and takes a minute. test_store_proxy.py has what they say to
# each other, and test_runner.py what becomes of runs, for every executor.
# One after the other, however many workers run tests: each starts a cluster.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def ray() -> Any:
    """Imported here, as collecting the tests would otherwise take a second more."""
    return pytest.importorskip("ray", reason="Ray is not installed: pip install 'normkit[ray]'")


@pytest.fixture(scope="module")
def cluster(ray: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head with room for one run. The data's folder is empty on nodes that a test adds."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    yield cluster
    cluster.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)


@pytest.fixture
def pictures(dataset: data.Dataset) -> data.Dataset:
    """Images that no node can load by itself: those of the data set, upside down."""
    flipped = [
        dataclasses.replace(split.take(400), images=split.take(400).images.flip(2))
        for split in (dataset.train, dataset.test)
    ]
    return dataclasses.replace(dataset, train=flipped[0], test=flipped[1])


def results(run: Run | None) -> object:
    assert run is not None
    metrics = {name: points for name, points in run.metrics.items() if name != "epoch_seconds"}
    return run.config, run.status, run.step, run.error, metrics, run.vectors


def plan(store: Store, *configs: RunConfig) -> list[str]:
    for config in configs:
        store.add(config)
    return [config.key for config in configs]


def steps(store: Store) -> list[int]:
    """The steps of the runs that are being trained and have a checkpoint."""
    rows = store.connection.execute(
        "SELECT runs.step AS step FROM runs JOIN checkpoints ON checkpoints.run = runs.id "
        "WHERE status = 'running'"
    )
    return [row["step"] for row in rows]


class Watched(RayPool):
    """Keeps what ended how."""

    def wait(self, seconds: float) -> list[EndedJob]:
        ended = super().wait(seconds)
        self.seen = [*getattr(self, "seen", []), *(end.result for end in ended)]
        return ended


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_killed_node_costs_one_attempt(
    cluster: Any, store: Store, make_config: Make, pictures: data.Dataset, tmp_path: Path
) -> None:
    node = add_node(cluster)
    configs = [make_config(seed=seed, epochs=40, loss_every=4) for seed in range(2)]
    keys = plan(store, *configs)
    killed: list[int] = []

    def on_progress(now: Progress) -> None:
        if not killed and len(steps(store)) == 2:
            killed.extend(steps(store))
            cluster.remove_node(node, allow_graceful=False)

    with Watched(store.path, {"fashion-mnist": pictures}, address=cluster.address) as pool:
        assert pool.free == 2
        summary = work(store, keys, pool, on_progress=on_progress)
        # Two results, and one of the two had been begun in vain.
        assert sorted(pool.seen, key=str) == [None, "done", "done"]
    assert max(killed) < configs[0].steps
    assert sorted(summary.finished) == sorted(keys)
    assert summary.failed == []
    with Store(tmp_path / "here.sqlite") as here:
        for config in configs:
            here.add(config)
            assert _train_here(here, config, pictures) == "done"
            assert results(store.get(config.key)) == results(here.get(config.key))


def _train_here(store: Store, config: RunConfig, pictures: data.Dataset) -> str:
    from normkit.lab.leases import acquire

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    lease = acquire(store, config.key)
    assert lease is not None
    result = worker.attempt(config, lease, lambda: False, find=lambda name: pictures)
    torch.set_num_threads(before)
    return result


def test_ctrl_c_keeps_checkpoints(
    cluster: Any, store: Store, make_config: Make, dataset: data.Dataset
) -> None:
    keys = plan(store, make_config(epochs=4000), make_config(seed=1, epochs=4000))
    interrupted = False

    def on_progress(now: Progress) -> None:
        nonlocal interrupted
        if steps(store) and not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    with RayPool(store.path, {}, address=cluster.address) as pool:
        summary = work(store, keys, pool, on_progress=on_progress)
    assert summary.interrupted
    assert summary.finished == []
    assert [store.progress(keys)[key][0] for key in keys] == ["waiting", "waiting"]
    run = store.get(keys[0])
    assert run is not None
    assert 0 < run.step < run.config.steps


def test_unstarted_runs_are_cancelled(
    cluster: Any, ray: Any, store: Store, make_config: Make, tmp_path: Path
) -> None:
    keys = plan(store, make_config())
    done = tmp_path / "done"

    @ray.remote(num_cpus=1)
    def occupy(done: Path) -> None:
        while not done.exists():
            time.sleep(0.1)

    interrupted = False

    def on_progress(now: Progress) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    ray.init(address=cluster.address, logging_level="ERROR")
    try:
        task = occupy.remote(done)
        with RayPool(store.path, {}, address=cluster.address) as pool:
            assert work(store, keys, pool, on_progress=on_progress).interrupted
            assert pool.busy == 0
        assert store.progress(keys)[keys[0]][0] == "waiting"
        done.touch()
        ray.get(task)
    finally:
        ray.shutdown()


def test_lost_cluster_raises_with_fix(
    cluster: Any, ray: Any, store: Store, make_config: Make, pictures: data.Dataset
) -> None:
    with (
        pytest.raises(NormkitError, match="everything recorded is kept"),
        RayPool(store.path, {"fashion-mnist": pictures}, address=cluster.address) as pool,
    ):
        ray.kill(pool._proxy)
    ray.shutdown()


def test_error_belongs_to_its_run(
    cluster: Any, store: Store, make_config: Make, pictures: data.Dataset
) -> None:
    keys = plan(store, make_config(model="no-such-model"), make_config())
    with RayPool(store.path, {"fashion-mnist": pictures}, address=cluster.address) as pool:
        summary = work(store, keys, pool)
    assert (summary.failed, summary.finished) == (keys[:1], keys[1:])
    run = store.get(keys[0])
    assert run is not None
    assert "no-such-model" in run.error


def test_threads_that_no_node_has_are_refused(cluster: Any, ray: Any, store: Store) -> None:
    with pytest.raises(OptionError, match="at least 64 CPUs for Ray"):
        RayPool(store.path, {}, address=cluster.address, threads=64)
    with pytest.raises(OptionError, match="and a GPU"):
        RayPool(store.path, {}, address=cluster.address, device="cuda")
    assert not ray.is_initialized()


def test_no_cluster_at_the_address(store: Store) -> None:
    with pytest.raises(OptionError, match="ray start --head"):
        RayPool(store.path, {}, address="127.0.0.1:1")
    with pytest.raises(OptionError, match="an address on a node"):
        RayPool(store.path, {}, address="ray://127.0.0.1:10001")
    with pytest.raises(OptionError, match="at least 1"):
        RayPool(store.path, {}, workers=0)
