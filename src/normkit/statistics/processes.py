"""The processes that share a measurement, or the one that makes it alone."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch.distributed as dist

from normkit.errors import OptionError, StatisticsError, explain

__all__ = ["Peers", "peers"]

T = TypeVar("T")


class Peers(Protocol):
    """Those who take part."""

    rank: int

    def gather(self, mine: T) -> list[T]:
        """What every process gives, by rank, at every process."""


class _Alone:
    rank = 0

    def gather(self, mine: T) -> list[T]:
        return [mine]


class _Group:
    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank = dist.get_rank(group)

    def gather(self, mine: T) -> list[T]:
        found: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(found, mine, group=self._group)
        return found


def peers(process_group: Any) -> Peers:
    """The processes of a group: None for all there are, False for this one alone.

    Raises:
        OptionError: this process is not in the group, or there is no process group at all.
    """
    ready = dist.is_available() and dist.is_initialized()
    if process_group is False or (process_group is None and not ready):
        return _Alone()
    if not ready or (process_group is not None and dist.get_rank(process_group) < 0):
        raise OptionError(
            explain(
                "process_group names processes that this one belongs to",
                "a group without it" if ready else "one, and torch.distributed is not initialized",
                "call it in the group's processes, or leave process_group out",
            )
        )
    group = dist.group.WORLD if process_group is None else process_group
    return _Group(group) if dist.get_world_size(group) > 1 else _Alone()


def refuse_failure(notes: list[str | None], rank: int) -> None:
    """Raise where another process has failed; ``notes`` holds what each says, None if all is well.

    Raises:
        StatisticsError: as said. The model is as it was, here as there.
    """
    failed = {i: note for i, note in enumerate(notes) if note is not None and i != rank}
    if failed:
        who, what = next(iter(failed.items()))
        raise StatisticsError(
            explain(
                "all processes must come through together",
                f"a failure in process {who}: {what}",
                "see that process's own error; no model was changed",
            )
        )
