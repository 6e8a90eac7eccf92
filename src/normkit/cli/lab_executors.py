"""Executor of ``normkit lab run``, and the options that choose it."""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normkit.errors import OptionError, message

if TYPE_CHECKING:
    from normkit.lab.data import Dataset
    from normkit.lab.executors import Executor
    from normkit.lab.executors.process_group import Processes

__all__ = [
    "AddressOption",
    "DeviceName",
    "DeviceOption",
    "ExecutorName",
    "ExecutorOption",
    "executor",
    "joined",
    "options",
]


class DeviceName(str, enum.Enum):
    """Device of a training."""

    cpu = "cpu"
    cuda = "cuda"


class ExecutorName(str, enum.Enum):
    """Kind of executor."""

    local = "local"
    ray = "ray"


ExecutorOption = Annotated[
    ExecutorName,
    typer.Option(
        "--executor",
        help="Processes on this machine, or a Ray cluster; see docs/beyond-one-machine.md.",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Address of the Ray cluster. Default: this machine's cluster, or a new one.",
    ),
]
DeviceOption = Annotated[DeviceName, typer.Option(help="Device to train on.")]


def executor(
    kind: ExecutorName,
    store: Path,
    datasets: Mapping[str, Dataset],
    *,
    address: str | None,
    workers: int | None,
    threads: int,
    device: DeviceName,
    processes: Processes | None = None,
) -> AbstractContextManager[Executor]:
    """Create the executor that the options choose.

    Args:
        processes: the ones that torchrun started; None without torchrun.

    Raises:
        OptionError: the options conflict, or this machine lacks what they name.
    """
    if processes is not None:
        import torch

        from normkit.lab.executors.torchrun import Torchrun

        torch.set_num_threads(threads)
        return Torchrun(processes)
    if kind is ExecutorName.ray:
        from normkit.lab.executors.ray_pool import RayPool

        return RayPool(
            store,
            datasets,
            address=address,
            workers=workers,
            threads=threads,
            device=device.value,
        )
    if address is not None:
        raise OptionError(
            message("--address together with --executor ray", address, "add --executor ray")
        )
    from normkit.lab import machine
    from normkit.lab.executors import LocalPool
    from normkit.lab.placement import find_device
    from normkit.lab.worker import run

    find_device(device.value)  # one error here, not one for each run in the workers
    job = functools.partial(run, device=device.value)
    # Runs that share one GPU gain little from each other, and each takes its memory.
    count = machine.cores() if device is DeviceName.cpu else 1
    return LocalPool(job, workers=workers or count, threads=threads)


def joined(
    kind: ExecutorName, address: str | None, workers: int | None, threads: int, device: DeviceName
) -> Processes | None:
    """Connect to the other processes that torchrun started; None without torchrun.

    Raises:
        OptionError: an option asks for another executor.
        Exit: this process is not rank 0, and the study has ended.
    """
    from normkit.lab.executors import process_group, torchrun

    if not process_group.launched():
        return None
    conflicts = {"--executor": kind is ExecutorName.ray, "--address": address, "--workers": workers}
    for name, value in conflicts.items():
        if value:
            raise OptionError(
                message(
                    "no such option under torchrun, where all processes train each run together",
                    name,
                    f"leave out {name}, or torchrun",
                )
            )
    processes = process_group.join(device.value)
    if processes.rank == 0:
        return processes
    import torch

    torch.set_num_threads(threads)
    raise typer.Exit(0 if torchrun.worker_loop(processes) else 1)


def options(
    kind: ExecutorName,
    address: str | None,
    workers: int | None,
    threads: int,
    device: DeviceName,
) -> list[str]:
    """Return the options as typed on the command line, without those at their default."""
    typed = {
        "--executor": None if kind is ExecutorName.local else kind.value,
        "--address": address,
        "--workers": workers,
        "--threads": None if threads == 1 else threads,
        "--device": None if device is DeviceName.cpu else device.value,
    }
    return [
        word for name, value in typed.items() if value is not None for word in (name, str(value))
    ]
