"""Progress of a study, as the store has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from normkit.lab.store import Store

__all__ = ["RESULTS", "Progress", "progress_of"]

RESULTS = ("done", "diverged")


@dataclasses.dataclass(frozen=True)
class Progress:
    """The state of a study: runs ended, of how many.

    Attributes:
        shares: of each run the share of its steps that is done, by key.
        ended: keys of the runs that have ended, those that failed too.
        failed: keys of these.
        stopping: the study was interrupted, and runs in progress save their state.
    """

    runs_done: int
    runs: int
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    ended: frozenset[str] = dataclasses.field(default=frozenset(), compare=False, repr=False)
    failed: frozenset[str] = dataclasses.field(default=frozenset(), compare=False, repr=False)
    stopping: bool = dataclasses.field(default=False, compare=False)


def progress_of(store: Store, keys: Sequence[str], *, stopping: bool = False) -> Progress:
    """Read how far these runs have come."""
    state = store.progress(keys)
    failed = frozenset(key for key, entry in state.items() if entry[0] == "failed")
    ended = failed | {key for key, entry in state.items() if entry[0] in RESULTS}
    done = {key: steps if key in ended else step for key, (_, step, steps) in state.items()}
    return Progress(
        runs_done=len(ended),
        runs=len(state),
        shares={key: done[key] / steps for key, (_, _, steps) in state.items()},
        ended=ended,
        failed=failed,
        stopping=stopping,
    )
