"""Connect the processes that ``torchrun`` started, and exchange runs and errors among them."""

from __future__ import annotations

import datetime
import gc
import os
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from normkit.allocator import keep_freed_memory
from normkit.errors import OptionError, message
from normkit.lab.placement import DistributedPlacement, Placement, find_device

__all__ = ["Processes", "join", "launched"]

PATIENCE = datetime.timedelta(days=1)
"""How long one process waits for another, that may be reading data or waiting for a lease. One
that ends is noticed at once."""

ERROR = "normkit/error"
ERROR_SECONDS = 3.0


def launched() -> bool:
    """Return True if ``torchrun`` started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


class Processes:
    """The connected processes: their placement, and a board for errors.

    Args:
        device: "cpu" or "cuda".
        store: a key-value store of ``torch.distributed`` that outlives any of the processes.
    """

    def __init__(self, device: str, store: Store, rank: int, size: int) -> None:
        where = find_device(device)
        backend = "gloo"
        if where.type == "cuda":
            where = torch.device("cuda", _own_gpu())
            torch.cuda.set_device(where)
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
        keep_freed_memory()
        self._store = store
        self.shared_placement = DistributedPlacement(where)
        self.single_placement = Placement(where)
        self.rank = rank

    def broadcast(self, what: Any = None) -> Any:
        """Send an object from rank 0 to all processes; return it."""
        box = [what]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def publish_error(self, error: str) -> None:
        """Publish an error to the other ranks; the first one wins."""
        self._store.compare_set(ERROR, "", f"process {self.rank}: {error}")

    def published_error(self) -> str:
        """Return the error of the process that failed first; empty if none appears soon."""
        until = time.monotonic() + ERROR_SECONDS
        while time.monotonic() < until:
            if self._store.check([ERROR]):
                return str(self._store.get(ERROR), errors="replace")
            time.sleep(0.05)
        return ""

    def leave(self) -> None:
        """Close the connection, once all are done."""
        # A DistributedDataParallel that outlives it can hang: its reducer then joins the group's
        # threads with the GIL, for which one of them may wait (pytorch#56297).
        gc.collect()
        dist.destroy_process_group()


def _own_gpu() -> int:
    """Return the index of this process's GPU on its machine."""
    index, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= there:
        raise OptionError(
            message(
                "one GPU for each process",
                f"{index + 1} processes or more on a machine with {there}",
                f"run torchrun --nproc-per-node {there}",
            )
        )
    return index


def join(device: str) -> Processes:
    """Connect to the other processes that ``torchrun`` started.

    Raises:
        OptionError: no such device here.
    """
    # torchrun itself keeps this store, so it outlives any of the processes.
    store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    return Processes(device, store, rank, size)
