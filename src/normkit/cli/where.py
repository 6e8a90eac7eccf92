"""Where ``normkit lab run`` has its runs carried out: options, and the executor they ask for."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normkit.errors import OptionError, explain

if TYPE_CHECKING:
    from normkit.lab.data import Dataset
    from normkit.lab.executors import Executor

__all__ = ["AddressOption", "ExecutorName", "ExecutorOption", "executor", "options"]


class ExecutorName(str, enum.Enum):
    """Who carries out the runs."""

    local = "local"
    ray = "ray"


ExecutorOption = Annotated[
    ExecutorName,
    typer.Option(
        "--executor", help="Processes of this machine, or a Ray cluster: docs/beyond-one-machine.md"
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Of the Ray cluster; if not given, the one this machine is part of, or a new one."
    ),
]


def executor(
    kind: ExecutorName,
    store: Path,
    datasets: Mapping[str, Dataset],
    *,
    address: str | None,
    workers: int | None,
    threads: int,
) -> AbstractContextManager[Executor]:
    """What was asked for, ready.

    Raises:
        OptionError: options that do not go together, or that this machine cannot serve.
    """
    if kind is ExecutorName.ray:
        from normkit.lab.executors.cluster import RayPool

        return RayPool(store, datasets, address=address, workers=workers, threads=threads)
    if address is not None:
        raise OptionError(
            explain("an address is that of a Ray cluster", address, "add --executor ray")
        )
    from normkit.lab import machine
    from normkit.lab.executors import LocalPool
    from normkit.lab.worker import run as job

    return LocalPool(job, workers=workers or machine.cores(), threads=threads)


def options(kind: ExecutorName, address: str | None) -> list[str]:
    """The same as one types it, where it is not the default."""
    found = [] if kind is ExecutorName.local else ["--executor", kind.value]
    return found if address is None else [*found, "--address", address]
