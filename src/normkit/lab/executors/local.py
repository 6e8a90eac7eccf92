"""The default: a pool of worker processes on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.synchronize
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from normkit.allocator import keep_freed_memory
from normkit.errors import OptionError, message
from normkit.lab.executors.protocol import EndedJob, Job

__all__ = ["LocalPool"]

GRACE_SECONDS = 10.0


# In a worker: what tells its jobs to stop. Set once, by ``_start``, when the process begins.
_stop: multiprocessing.synchronize.Event | None = None
_orphaned = threading.Event()


class LocalPool:
    """Worker processes on this machine, each with its own number of threads.

    Each worker is a pool of one, so that a worker that dies (killed, out of memory) takes down
    its own job only; the place is filled again with a new process. Processes are spawned, not
    forked: a forked child of a process that has used torch's threads can hang.

    One thread in each of several workers is the default: a small network leaves a second thread
    waiting most of the time, and threads that wait for each other suffer most where other programs
    want the cores too. LeNet-5 with BN, batch size 256, on two cores that others used as well: four
    runs took 12 s with two workers of one thread, and 72 s or more with one worker of two.

    Args:
        job: a function of a module's top level.
        workers: how many processes.
        threads: torch threads in each.

    Raises:
        OptionError: less than one worker or thread.
    """

    def __init__(self, job: Job, *, workers: int, threads: int = 1) -> None:
        for name, value in (("workers", workers), ("threads", threads)):
            if value < 1:
                raise OptionError(
                    message(f"{name} of at least 1", str(value), f"use {name}=1 or more")
                )
        self._job = job
        self._threads = threads
        self._context = multiprocessing.get_context("spawn")
        self._event = self._context.Event()
        self._idle: list[ProcessPoolExecutor] = []
        self._unborn = workers
        self._busy: dict[Future[str], tuple[str, ProcessPoolExecutor]] = {}

    @property
    def free(self) -> int:
        """The number of jobs that can start now."""
        return len(self._idle) + self._unborn

    @property
    def busy(self) -> int:
        """The number of submitted jobs that :meth:`wait` has not returned."""
        return len(self._busy)

    def submit(self, argument: str) -> None:
        """Start the job with this argument, in an idle worker or a new one."""
        while self._idle:
            worker = self._idle.pop()
            try:
                self._give(worker, argument)
            except BrokenProcessPool:  # it died with nothing to do
                worker.shutdown(wait=True)
                self._unborn += 1
            else:
                return
        self._unborn -= 1
        worker = ProcessPoolExecutor(
            1,
            mp_context=self._context,
            initializer=_start,
            initargs=(self._event, self._threads),
        )
        self._give(worker, argument)

    def _give(self, worker: ProcessPoolExecutor, argument: str) -> None:
        with _deaf():
            self._busy[worker.submit(_work, self._job, argument)] = (argument, worker)

    def wait(self, seconds: float) -> list[EndedJob]:
        """Return the jobs that ended, as soon as there is one; none on timeout."""
        if not self._busy:
            time.sleep(seconds)
            return []
        ended = []
        for future in wait(self._busy, timeout=seconds, return_when=FIRST_COMPLETED).done:
            argument, worker = self._busy.pop(future)
            if isinstance(future.exception(), BrokenProcessPool):
                worker.shutdown(wait=True)
                self._unborn += 1
                ended.append(EndedJob(argument, None))
            else:
                self._idle.append(worker)
                # A job answers for its own errors; one that gets here ends the study.
                ended.append(EndedJob(argument, future.result()))
        return ended

    def stop(self) -> None:
        """Ask all jobs to end at their next step."""
        self._event.set()

    def close(self) -> None:
        """Wait for the running jobs, then end the processes."""
        workers = [*self._idle, *(worker for _, worker in self._busy.values())]
        for worker in workers:
            worker.shutdown(wait=True, cancel_futures=True)
        self._idle, self._busy = [], {}

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.close()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Shield processes started inside from Ctrl-C, which reaches the whole process group.

    The parent alone answers it, with ``stop``, and hears of it when this is over. A worker that
    only ignores it once it runs dies of it while Python starts, with a trace on the terminal.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(event: multiprocessing.synchronize.Event, threads: int) -> None:
    """Initialize a new worker process."""
    global _stop
    _stop = event
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems where _deaf does nothing
    threading.Thread(target=_outlive_no_parent, daemon=True).start()
    import torch  # here, as the parent may do without it

    torch.set_num_threads(threads)
    keep_freed_memory()


def _outlive_no_parent() -> None:
    """End this process soon after its parent, which may have been killed.

    Without this, a worker waits for its next job for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    with contextlib.suppress(OSError):
        parent.join()
    _orphaned.set()  # a job in progress saves its state and returns
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _stopping() -> bool:
    return _orphaned.is_set() or (_stop is not None and _stop.is_set())


def _work(job: Job, argument: str) -> str:
    return job(argument, _stopping)
