"""Runs on the machines of a Ray cluster, or on this one through Ray.

Each run is a Ray task, so Ray places it, restarts worker processes that die, and uses nodes that
join later. Workers write through an actor on the driver's node, which has the store
(:mod:`normkit.lab.executors.store_proxy`); data sets travel to them through Ray's object store, so
a node needs only normkit.
"""

from __future__ import annotations

import functools
import os
import signal
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normkit.allocator import keep_freed_memory
from normkit.errors import NormkitError, OptionError, message
from normkit.lab import machine, worker
from normkit.lab.config import RunConfig
from normkit.lab.data import Dataset
from normkit.lab.executors.protocol import EndedJob
from normkit.lab.executors.ray_connection import call, connect, import_ray
from normkit.lab.executors.store_proxy import RemoteLease, StoreProxy
from normkit.lab.placement import Placement, find_device
from normkit.lab.training import train

__all__ = ["RayPool"]


class RayPool:
    """The workers of a Ray cluster.

    A worker that dies, or whose node dies, ends only its own run, without a result; the lab
    restarts that run from its last checkpoint.

    Args:
        store: the file that keeps the runs, on this machine.
        datasets: by name, as they are to be used on all nodes. What is not among them is loaded on
            the node.
        address: of the cluster, as ``ray.init`` takes it, such as "auto" or "10.0.0.1:6379".
            Without one: ``RAY_ADDRESS``, the cluster that this machine is part of, or else a new
            one of this machine alone.
        workers: how many runs at once, at most; as many as the cluster has room for if None.
        threads: torch threads, and Ray's CPUs, of each.
        device: "cpu" or "cuda", which gives each run a GPU of its own.

    Raises:
        OptionError: Ray is not installed, there is no cluster at the address or none with a node
            that has so many CPUs, or a GPU; or less than one worker or thread.
    """

    def __init__(
        self,
        store: Path,
        datasets: Mapping[str, Dataset],
        *,
        address: str | None = None,
        workers: int | None = None,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        for name, value in (("workers", workers), ("threads", threads)):
            if value is not None and value < 1:
                raise OptionError(
                    message(f"{name} of at least 1", str(value), f"use {name}=1 or more")
                )
        self._ray = import_ray()
        self._workers = workers
        self._threads = threads
        self._device = device
        self._gpus = int(device == "cuda")
        self._ours = connect(self._ray, address)
        try:
            if self._places() == 0:
                raise OptionError(
                    message(
                        f"a node with at least {threads} CPUs for Ray"
                        + (" and a GPU" if self._gpus else "")
                        + f", for runs of {threads} threads",
                        f"nodes with (CPUs, GPUs) {self._nodes()}",
                        "use fewer --threads, leave out --device, or start the nodes with ray "
                        "start --num-cpus, --num-gpus",
                    )
                )
            self._sets = {name: self._ray.put(dataset) for name, dataset in datasets.items()}
            # Beside the store, where the driver is. It needs no CPU of its own.
            here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                self._ray.get_runtime_context().get_node_id(), soft=False
            )
            self._proxy = (
                self._ray.remote(StoreProxy)
                .options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
                .remote(str(Path(store).resolve()), machine.host(), os.getpid())
            )
            # Tries are the lab's to count.
            self._task = self._ray.remote(_carry_out).options(
                num_cpus=threads, num_gpus=self._gpus, max_retries=0
            )
        except BaseException:
            self._leave()
            raise
        self._busy: dict[Any, tuple[str, str]] = {}

    @property
    def free(self) -> int:
        """The number of jobs that can start now; it changes as nodes join and leave."""
        places = self._places()
        return max(0, min(places, self._workers or places) - len(self._busy))

    @property
    def busy(self) -> int:
        """The number of submitted jobs that :meth:`wait` has not returned."""
        return len(self._busy)

    def submit(self, argument: str) -> None:
        """Submit the run to the cluster."""
        owner = uuid.uuid4().hex
        key = worker.key_of(argument)
        task = self._task.remote(self._proxy, key, owner, self._sets, self._threads, self._device)
        self._busy[task] = (argument, owner)

    def wait(self, seconds: float) -> list[EndedJob]:
        """Return the jobs that ended, as soon as there is one; none on timeout."""
        if not self._busy:
            time.sleep(seconds)
            return []
        done, _ = self._ray.wait(list(self._busy), timeout=seconds)
        return [self._end(task) for task in done]

    def _end(self, task: Any) -> EndedJob:
        argument, owner = self._busy[task]
        ended = EndedJob(argument, self._result(task, argument, owner))
        del self._busy[task]
        return ended

    def _result(self, task: Any, argument: str, owner: str) -> str | None:
        try:
            return str(self._ray.get(task))
        except self._ray.exceptions.RayError as error:
            cause = error.cause if isinstance(error, self._ray.exceptions.RayTaskError) else error
            if not isinstance(cause, self._ray.exceptions.RayError):
                # A job answers for its own errors; one that gets here ends the study.
                raise cause from error
        # The worker or its node is gone, or there never was one.
        self._ask("release_dead", worker.key_of(argument), owner)
        return None

    def stop(self) -> None:
        """Ask all jobs to end at their next step, and cancel those that no worker has begun."""
        self._ask("stop")
        for task, (argument, owner) in self._busy.items():
            if not self._ask("holds", worker.key_of(argument), owner):
                self._ray.cancel(task)

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return call(self._ray, self._proxy, method, *arguments)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise NormkitError(
                message(
                    "the cluster to be there until the study ends",
                    f"{type(error).__name__}: {reason}",
                    "restart the cluster (ray start --head) and run the same command again; "
                    "everything recorded is kept",
                )
            ) from error

    def close(self) -> None:
        """Wait for the running jobs, then leave the cluster, or shut it down if started here."""
        if self._busy:
            self._ray.wait(list(self._busy), num_returns=len(self._busy))
            self._busy = {}
        self._ray.kill(self._proxy)
        self._leave()

    def _leave(self) -> None:
        if self._ours:
            self._ray.shutdown()

    def _places(self) -> int:
        return sum(
            min(cpus // self._threads, gpus) if self._gpus else cpus // self._threads
            for cpus, gpus in self._nodes()
        )

    def _nodes(self) -> list[tuple[int, int]]:
        """Return CPUs and GPUs of each live node."""
        return [
            (int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)))
            for node in self._ray.nodes()
            if node["Alive"]
        ]

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.close()


# In a worker ---------------------------------------------------------------------------------


def _carry_out(
    proxy: Any, key: str, owner: str, sets: Mapping[str, Any], threads: int, device: str
) -> str:
    """Carry out one run, on a node of the cluster."""
    import ray
    import torch

    # Ctrl-C may reach the whole group of processes. The driver alone answers it, with ``stop``.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    keep_freed_memory()

    ask = functools.partial(call, ray, proxy)
    placement = Placement(find_device(device))  # Ray shows a process its own GPU and no other
    answer = ask("take", key, owner, machine.versions(), machine.summary(), str(placement))
    if answer is None:
        return "held"
    text, run = answer
    lease = RemoteLease(ask, run, owner)
    return worker.attempt(
        RunConfig.from_json(text),
        lease,
        lease.stopping,
        functools.partial(_find, sets),
        functools.partial(train, placement=placement),
    )


def _find(sets: Mapping[str, Any], name: str) -> Dataset:
    return _fetch(sets[name]) if name in sets else worker.load(name)


@functools.lru_cache(maxsize=2)
def _fetch(reference: Any) -> Dataset:
    """Get a data set from Ray's object store, once per process."""
    import ray

    dataset: Dataset = ray.get(reference)
    return dataset
