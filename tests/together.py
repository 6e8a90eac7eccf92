"""Run a worker in several processes at once, over gloo on this machine."""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[1]
TIMEOUT = 300.0

# Workers are forked from a process that has imported these, which takes seconds. Optimizers and
# DistributedDataParallel import _dynamo.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch._dynamo", "torch.distributed", "normkit"])
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # workers get this path, and import themselves by name


def together(
    worker: ModuleType, sizes: Sequence[int], scenario: str, folder: Path
) -> list[dict[str, Any]]:
    """Run ``worker`` once for each size, and return what each process wrote, by rank.

    Its arguments are its rank, all sizes, a file to meet at, the folder and the scenario; it
    writes ``{rank}.pt``.
    """
    joined = ",".join(map(str, sizes))
    outputs = [folder / f"{rank}.txt" for rank in range(len(sizes))]
    codes = run(
        _run,
        [
            (output, worker.__name__,
             [str(rank), joined, str(folder / "rendezvous"), str(folder), scenario])
            for rank, output in enumerate(outputs)
        ],
    )  # fmt: skip
    for code, output in zip(codes, outputs, strict=True):
        assert code == 0, output.read_text()
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(len(sizes))]


def run(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> list[int | None]:
    """Call ``target`` in one process for each tuple of arguments, and return the exit codes."""
    processes = [context.Process(target=target, args=args) for args in arguments]
    try:
        for process in processes:
            process.start()
        deadline = time.monotonic() + TIMEOUT
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return [process.exitcode for process in processes]


def _run(output: Path, worker: str, arguments: list[str]) -> None:
    """Run a module as ``python -W error::UserWarning:normkit -m worker`` does."""
    with output.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(ROOT)
    warnings.filterwarnings("error", category=UserWarning, module=r"normkit\Z")
    sys.argv = [worker, *arguments]
    runpy.run_module(worker, run_name="__main__", alter_sys=True)
    leave()


def leave() -> None:
    """Destroy the process group, if there is one, after the models of its processes.

    Where the reducer of a ``DistributedDataParallel`` holds the last reference to the group, it
    joins the group's threads with the GIL, and one of them may wait for the GIL (pytorch#56297).
    After a test that failed its frames hold the model, so it may hang there still.
    """
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
