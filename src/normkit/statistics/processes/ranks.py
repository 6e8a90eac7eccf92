"""Ranks that measure together: sums over all of them, and failures that all hear of."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normkit.errors import OptionError, StatisticsError, message
from normkit.statistics.layers.find import NormLayer

__all__ = ["Ranks", "fingerprint", "ranks_of"]


class Ranks:
    """Processes of a group, or this one alone, for which every method is trivial.

    All ranks call the same methods in the same order. Reductions give all of them the same bits:
    gloo and NCCL add each element up in one place.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)

    def sum(self, values: Tensor) -> Tensor:
        """Add up ``values`` over all ranks."""
        return self._reduce(values, dist.ReduceOp.SUM) if self.size > 1 else values

    def maximum(self, values: Tensor) -> Tensor:
        """Take the elementwise maximum of ``values`` over all ranks."""
        return self._reduce(values, dist.ReduceOp.MAX) if self.size > 1 else values

    def _reduce(self, values: Tensor, op: Any) -> Tensor:
        # NCCL takes tensors on a GPU only, and others those of their own devices.
        devices = [pair.split(":")[0] for pair in dist.get_backend_config(self._group).split(",")]
        sent = values.clone() if "cpu" in devices else values.to(devices[0])
        dist.all_reduce(sent, op, group=self._group)
        return sent.cpu()

    def first(self, value: Any) -> tuple[int, Any]:
        """Return the value of the first rank whose value is not None, and its rank.

        All ranks call it; without such a rank the result is their number, and None.
        """
        rank = torch.tensor([self.size if value is None else self.rank], device="cpu")
        first = int(self._reduce(rank, dist.ReduceOp.MIN)) if self.size > 1 else int(rank)
        if self.size == 1 or first == self.size:
            return first, value
        values = [value]
        source = dist.get_global_rank(self._group, first)
        dist.broadcast_object_list(values, source, self._group)
        return first, values[0]

    def status(
        self, counts: Sequence[int], layers: int, error: BaseException | None = None
    ) -> list[int]:
        """Add up ``counts`` over all ranks, which also shows whether all are well.

        Args:
            counts: numbers of this rank.
            layers: a number that is the same at ranks that measure the same layers.
            error: this rank's failure; the caller raises it afterwards.

        Raises:
            StatisticsError: another rank has failed, or measures other layers.
        """
        if self.size == 1:
            return list(counts)
        # The mean of the squares is the square of the mean where all are equal, and only there.
        row = [*counts, int(error is not None), layers, layers**2]
        *totals, failed, first, second = self.sum(torch.tensor(row, device="cpu")).tolist()
        if failed:
            self._raise_failure(error)
        elif first**2 != second * self.size:
            raise StatisticsError(
                message(
                    "the same layers in every process",
                    f"layers of other names and sizes than process {self.rank} has",
                    "pass the same model, frozen alike, in every process",
                )
            )
        return list(totals)

    @contextlib.contextmanager
    def announcing(self, counts: int) -> Iterator[None]:
        """Let the other ranks know of an error within, at their next :meth:`status`.

        ``counts`` is how many that one adds up.
        """
        try:
            yield
        except Exception as error:
            self.status([0] * counts, 0, error)
            raise

    def _raise_failure(self, error: BaseException | None) -> None:
        first, note = self.first(None if error is None else f"{type(error).__name__}: {error}")
        if error is None:
            raise StatisticsError(
                message(
                    "every process to succeed",
                    f"a failure in process {first}: {note}",
                    "see that process's own error; no model was changed",
                )
            )


def ranks_of(process_group: Any) -> Ranks:
    """Return the ranks of a group: None for all there are, False for this process alone.

    Raises:
        OptionError: this process is not in the group, or no process group is initialized.
    """
    ready = dist.is_available() and dist.is_initialized()
    if process_group is False or (process_group is None and not ready):
        return Ranks()
    if not ready or (process_group is not None and dist.get_rank(process_group) < 0):
        raise OptionError(
            message(
                "a process_group that this process belongs to",
                "a group without it" if ready else "one, but torch.distributed is not initialized",
                "call it in the group's processes, or leave process_group out",
            )
        )
    return Ranks(dist.group.WORLD if process_group is None else process_group)


def fingerprint(layers: Sequence[NormLayer]) -> int:
    """Return a number that almost surely differs between models whose layers differ."""
    text = ";".join(f"{one.name} {one.spec.per} {tuple(one.tensors[0].shape)}" for one in layers)
    return zlib.crc32(text.encode()) >> 8  # 24 bits: sums of squares fit 64 bits at 10⁴ ranks
