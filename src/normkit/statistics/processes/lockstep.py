"""Run as many forwards on every rank, for models whose forward is itself a collective.

Under FSDP and the like a forward gathers weights from all ranks: one that runs alone waits for the
others until the process group's timeout ends them all. So the ranks agree before each forward, and
one that has no more batches runs along on an earlier one, uncounted.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from normkit.errors import DataError, OptionError, StatisticsError, message
from normkit.statistics.batches.run_model import Forward, check_batch
from normkit.statistics.batches.tensors import count_samples, tensors_in, to_device
from normkit.statistics.layers.preserve import is_sharded
from normkit.statistics.processes.ranks import Ranks

__all__ = ["MET", "check_complete", "check_group", "in_step"]

MET = 2
"""Numbers that the ranks add up before each forward."""


def check_group(model: nn.Module, process_group: Any) -> None:
    """Raise if ranks that take part in each forward of ``model`` are not in the group.

    Raises:
        OptionError: they would be waited for without end.
    """
    if not is_sharded(model) or not dist.is_initialized() or process_group is None:
        return
    alone = process_group is False
    members = {dist.get_rank()} if alone else {*dist.get_process_group_ranks(process_group)}
    needed = _sharing_ranks(model) or ({*range(dist.get_world_size())} if alone else set())
    if needed - members:
        raise OptionError(
            message(
                "a process_group with all processes that share the model's weights, as each "
                "forward gathers them",
                "process_group=False" if alone else f"a group of the processes {sorted(members)}",
                "leave process_group out, and call it in all processes",
            )
        )


def _sharing_ranks(model: nn.Module) -> set[int]:
    """Return the ranks that share weights along one mesh or group; none where it is not known."""
    ranks: set[int] = set()
    for module in model.modules():
        group = getattr(module, "process_group", None)
        if isinstance(group, dist.ProcessGroup) and is_sharded(module):
            ranks.update(dist.get_process_group_ranks(group))
    for parameter in model.parameters():
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is not None and mesh.ndim == 1:  # of several axes not all need to be sharded over
            ranks.update(mesh.mesh.tolist())
    return ranks


def in_step(
    batches: Iterable[Any],
    ranks: Ranks,
    model: nn.Module,
    forward: Forward | None,
    limit: float = math.inf,
    enough: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Any, bool]]:
    """Yield this rank's batches with True; then, while other ranks have some, one with False.

    The ranks meet before each, so all yield equally often. Batches without samples are omitted.

    Args:
        batches: this rank's.
        ranks: all that run the model together.
        model, forward: what the batches are for, to check them before anyone waits.
        limit: the most of its batches to take.
        enough: tells when this rank needs no more of its batches.

    Raises:
        DataError: there are fewer than ``limit`` batches, where that is finite.
        StatisticsError: another rank has failed to load a batch; or this rank has had none, and
            no other one's can be sent.
    """
    stream: Iterator[Any] | None = None
    previous, drawn = None, 0
    while True:
        batch = None
        try:
            if stream is None:
                stream = (batch for batch in batches if count_samples(batch) != 0)
            if drawn < limit and not enough():
                batch = next(stream, None)
            if batch is not None:
                check_batch(model, batch, forward)
            elif not enough():
                check_complete(drawn, limit)
        except BaseException as error:
            ranks.status([0, 0], 0, error)
            raise
        counts = batch is not None
        drawn += counts
        previous = batch if counts else previous
        having, lacking = ranks.status([int(counts), int(previous is None)], 0)
        if not having:
            return
        if lacking:
            copy = _copy_from_another(batch, ranks, model)
            previous = copy if previous is None else previous
        yield previous, counts


def check_complete(drawn: int, limit: float) -> None:
    """Raise if a later pass had fewer batches than the first, whose number is ``limit``.

    Raises:
        DataError: the loader does not begin again.
    """
    if drawn < limit < math.inf:
        raise DataError(
            message(
                "the same batches in each of several passes",
                f"{int(limit)} in the first one and {drawn} in a later one",
                "pass a list, or a loader that begins again each time it is iterated over",
            )
        )


def _copy_from_another(batch: Any, ranks: Ranks, model: nn.Module) -> Any:
    """Return the batch of the first rank that has one."""
    _, sent = ranks.first(None if batch is None else _packed(batch))
    if sent is None:
        raise StatisticsError(
            message(
                "a batch in every process, as each forward needs all of them",
                "none in one process, and a batch that cannot be pickled in the others",
                "give each process at least one batch",
            )
        )
    copy, on_device = pickle.loads(sent)
    if on_device:
        place = next((p.device for p in model.parameters()), torch.device("cpu"))
        return to_device(copy, place)
    return copy


def _packed(batch: Any) -> bytes | None:
    on_device = any(tensor.device.type != "cpu" for tensor in tensors_in(batch))
    try:
        return pickle.dumps((to_device(batch, torch.device("cpu")), on_device))
    except Exception:
        return None
