"""All processes that ``torchrun`` started, training one run after another together.

The first of them is the lab: it has the store, prints, judges and reports, and to it the others
are an executor with a place for one run. The others :func:`follow`: they are told which run comes,
train their share of it, and write nothing.

A process that fails cannot be left out: the others wait for its share. So it ends all of them, and
the run is stored as failed with the error of the process that failed first.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from normkit.errors import NormkitError, OptionError, explain
from normkit.lab import worker
from normkit.lab.building import build_model
from normkit.lab.config import RunConfig
from normkit.lab.data import Dataset
from normkit.lab.executors.protocol import Ended
from normkit.lab.leases import LeaseLostError
from normkit.lab.memory import keep_freed
from normkit.lab.places import Place, Together, alone_because, device_named
from normkit.lab.training import Outcome, train

__all__ = ["Processes", "Torchrun", "follow", "join", "launched"]

PATIENCE = datetime.timedelta(days=1)
"""How long one process waits for another, that may be reading data or waiting for a lease. One
that ends is noticed at once."""

ERROR = "normkit/error"
ERROR_SECONDS = 3.0


def launched() -> bool:
    """Whether ``torchrun`` started this process, with others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


class Processes:
    """The processes that train together, joined: their place, and a board for errors.

    Args:
        device: "cpu" or "cuda".
        store: a key-value store of ``torch.distributed`` that outlives any of the processes.
    """

    def __init__(self, device: str, store: Store, rank: int, size: int) -> None:
        where = device_named(device)
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
        keep_freed()
        self._store = store
        self.together = Together(where)
        self.alone = Place(where)
        self.rank = rank

    def tell(self, what: Any = None) -> Any:
        """Give something from the first process to all; returns it."""
        box = [what]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def pin(self, error: str) -> None:
        """Put up an error for the others to find; the first one counts."""
        self._store.compare_set(ERROR, "", f"process {self.rank}: {error}")

    def pinned(self) -> str:
        """The error that a process put up before it ended; empty if none does soon."""
        until = time.monotonic() + ERROR_SECONDS
        while time.monotonic() < until:
            if self._store.check([ERROR]):
                return str(self._store.get(ERROR), errors="replace")
            time.sleep(0.05)
        return ""

    def leave(self) -> None:
        """End the connection, once all are done."""
        dist.destroy_process_group()


def _own_gpu() -> int:
    """The GPU of this process, of those of its machine."""
    index, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= there:
        raise OptionError(
            explain(
                "each process needs a GPU of its own",
                f"{index + 1} processes or more on a machine with {there}",
                f"torchrun --nproc-per-node {there}",
            )
        )
    return index


def join(device: str) -> Processes:
    """Meet the other processes that ``torchrun`` started.

    Raises:
        OptionError: no such device here.
    """
    # torchrun itself keeps this store, so that it is there whoever of the processes ends.
    store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    return Processes(device, store, rank, size)


class Torchrun:
    """An executor with one place, in which all processes train together. For the first process.

    A run in which they cannot share the batches is trained by the first one alone, while the
    others wait: :func:`normkit.lab.places.alone_because`.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._waiting: list[str] = []
        self._ended: list[Ended] = []
        self._asked = self._told = False
        self._broken = ""  # why the processes cannot go on together
        # Ctrl-C and SIGTERM come in the midst of a training, whose processes must end at the same
        # step. They are noted, and raised when it has ended.
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    @property
    def free(self) -> int:
        """1, or 0 while a run waits or is trained."""
        return 0 if self._waiting or self._ended else 1

    @property
    def busy(self) -> int:
        """1 while a run waits or is trained."""
        return len(self._waiting) + len(self._ended)

    def submit(self, argument: str) -> None:
        """Take up the run; it is trained in :meth:`wait`."""
        self._waiting.append(argument)

    def wait(self, seconds: float) -> list[Ended]:
        """Train what was submitted, to its end.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM came meanwhile.
            NormkitError: the processes cannot go on together, as one of them failed.
        """
        if self._broken and not self._ended:
            raise NormkitError(
                explain(
                    "all processes must go on together",
                    self._broken,
                    "correct what it says, and run the same command again",
                )
            )
        if self._waiting and not self._ended:
            argument = self._waiting.pop()
            result = worker.carry_out(argument, self._stopping, self._lead, self._where)
            self._ended.append(Ended(argument, result))
        elif not self._ended:
            time.sleep(seconds)
        if self._asked and not self._told:
            self._told = True
            raise KeyboardInterrupt
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """What is trained, and what is submitted from now on, ends at its next step."""
        self._asked = self._told = True

    def close(self) -> None:
        """Send the others home."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if not self._broken:
            self._broken = "the end of the study"
            # One that was killed while this one trained alone, or waited, cannot be told any more.
            with contextlib.suppress(RuntimeError):
                self._processes.tell(None)
                self._processes.leave()

    def __enter__(self) -> Torchrun:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error of this process alone, the others are not where they could be told.
        if kind is not None and issubclass(kind, Exception):
            self._broken = self._broken or f"an error of the first one ({kind.__name__})"
        self.stop()
        self.close()

    def _stopping(self) -> bool:
        return self._asked

    def _where(self, config: RunConfig) -> str:
        return str(self._processes.alone if self._alone(config) else self._processes.together)

    def _alone(self, config: RunConfig) -> str:
        try:
            # Which layers it has depends on neither the channels of its images nor its classes.
            model = build_model(config, in_channels=3, classes=10)
        except Exception as error:
            return f"it cannot be built: {error}"  # as will be stored when it is tried
        return alone_because(config, model)

    def _lead(
        self,
        config: RunConfig,
        dataset: Dataset,
        log: worker.Right,
        *,
        resume: bytes | None,
        stopping: Callable[[], bool],
    ) -> Outcome:
        place: Place = self._processes.alone
        if not self._alone(config):
            self._processes.tell((config.to_json(), resume))
            place = self._processes.together
        try:
            return train(config, dataset, log, resume=resume, stopping=stopping, place=place)
        except Exception as error:
            if place.size == 1:
                raise
            found = self._processes.pinned()
            self._processes.pin(traceback.format_exc())
            self._broken = (
                "a run that another process took over while this one was held up"
                if isinstance(error, LeaseLostError)
                else "one that failed, with the error that is stored with its run"
            )
            if not found:
                raise
            raise NormkitError(f"Another process failed. {found}") from error


class _Silent:
    """A log that keeps nothing: the first process writes for all."""

    def measured(
        self,
        step: int,
        epoch: int,
        metrics: Mapping[str, float | None],
        vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        pass

    def checkpoint(self, step: int, state: bytes) -> None:
        pass


def follow(processes: Processes) -> bool:
    """Train along with the first process until it has no more runs.

    Returns:
        Whether all went well; what did not is printed, or known to the process that failed.
    """
    # The first process answers Ctrl-C and SIGTERM, and takes this one along.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        while (task := processes.tell()) is not None:
            text, resume = task
            config = RunConfig.from_json(text)
            dataset = worker.checked(config, worker.load(config.data))
            train(config, dataset, _Silent(), resume=resume, place=processes.together)
    except Exception:
        processes.pin(traceback.format_exc())
        return False
    processes.leave()
    return True
