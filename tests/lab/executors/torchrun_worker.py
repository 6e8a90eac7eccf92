"""One of several processes of tests/lab/executors/test_torchrun.py: the lab, or a worker."""

from __future__ import annotations

import gc
import os
import signal
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import FileStore

from normkit.lab import runner
from normkit.lab.executors.process_group import Processes
from normkit.lab.executors.torchrun import Torchrun, worker_loop
from normkit.lab.store import Store
from normkit.lab.trainer import Trainer


def main() -> None:
    rank, sizes, meeting, folder, scenario = sys.argv[1:]
    torch.set_num_threads(1)
    size = len(sizes.split(","))
    processes = Processes("cpu", FileStore(meeting, size), int(rank), size)
    found = globals()[scenario](processes, Path(folder))
    torch.save(found, Path(folder) / f"{rank}.pt")


def study(processes: Processes, folder: Path) -> dict[str, Any]:
    """Carry out all runs of the store, as ``normkit lab run`` does."""
    if processes.rank:
        return {"well": worker_loop(processes)}
    with Store(folder / "lab.sqlite") as store, Torchrun(processes) as pool:
        keys = [row["key"] for row in store.connection.execute("SELECT key FROM runs ORDER BY id")]
        summary = runner.work(store, keys, pool)
    return {"finished": summary.finished, "failed": summary.failed}


def before_step(number: int, act: Callable[[], None]) -> Callable[[], int]:
    """Call ``act`` before this process's step of this number; return a counter of its steps."""
    learn, steps = Trainer.learn, 0

    def counted(self: Trainer, *batch: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == number:
            act()
        return learn(self, *batch)

    Trainer.learn = counted  # type: ignore[method-assign]
    return lambda: steps


def interrupted(processes: Processes, folder: Path) -> dict[str, Any]:
    """Run the study; SIGTERM reaches every process during the first run."""
    steps = before_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    return study(processes, folder) | {"steps": steps()}


def failing(processes: Processes, folder: Path) -> dict[str, Any]:
    """Run the study; the last process fails at the third step."""

    def fail() -> None:
        raise RuntimeError("out of cheese")

    if processes.rank == processes.shared_placement.size - 1:
        before_step(3, fail)
    try:
        return study(processes, folder)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def left(processes: Processes, folder: Path) -> dict[str, Any]:
    """Leave while a reference cycle holds a model whose reducer holds the process group."""
    gc.disable()
    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 1))
    model(torch.ones(1, 2)).sum().backward()
    model.cycle = [model]  # type: ignore[assignment]
    alive = weakref.ref(model)
    del model
    assert alive() is not None
    processes.leave()
    return {"model": alive()}


if __name__ == "__main__":
    main()
