"""One of several processes of tests/lab/executors/test_torchrun.py: the lab, or a worker."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
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
    """All runs of the store, as ``normkit lab run`` does them."""
    if processes.rank:
        return {"well": worker_loop(processes)}
    with Store(folder / "lab.sqlite") as store, Torchrun(processes) as pool:
        keys = [row["key"] for row in store.connection.execute("SELECT key FROM runs ORDER BY id")]
        summary = runner.work(store, keys, pool)
    return {"finished": summary.finished, "failed": summary.failed}


def interrupted(processes: Processes, folder: Path) -> dict[str, Any]:
    """The same, and SIGTERM reaches every process in the midst of the first run."""
    real = Trainer.learn
    steps = 0

    def step(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    Trainer.learn = step
    found = study(processes, folder)
    return found | {"steps": steps}


def failing(processes: Processes, folder: Path) -> dict[str, Any]:
    """The same, and the last process fails at the third step."""
    real = Trainer.learn
    steps = 0

    def step(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise RuntimeError("out of cheese")
        return real(*arguments)

    if processes.rank == processes.together.size - 1:
        Trainer.learn = step
    try:
        return study(processes, folder)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
