"""Runs what a study lacks: plans it in the store, hands runs to an executor, follows them.

All state is in the store, so a call that is stopped, killed or repeated does only what is missing,
and two calls at once share the work: a run that another process holds is left to it, and taken
over if that process dies.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

from normkit.errors import DataError, explain
from normkit.lab import data, worker
from normkit.lab.claims.claim import Available, Claim, Preset
from normkit.lab.executors import Executor
from normkit.lab.runs import Run
from normkit.lab.store import Store

__all__ = ["Progress", "Summary", "datasets", "plan", "work"]

ATTEMPTS = 2
"""How often a run's worker may die under it before it has come further than the time before."""

TICK_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a study stands. Steps count all runs together."""

    runs_done: int
    runs: int
    steps_done: int
    steps: int


@dataclasses.dataclass
class Summary:
    """What a call of :func:`work` did. Lists hold keys of runs."""

    known: int = 0
    finished: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0


def datasets(claims: Sequence[Claim], *, progress: bool = False) -> dict[str, data.Dataset]:
    """The data that the claims need, by name.

    A data set that is missing is fetched; where that fails, the shipped subset takes its place
    and the findings say so.

    Raises:
        DataError: a data set cannot be had at all.
    """
    names = dict.fromkeys(claim.data for claim in claims)
    return {name: data.load(name, progress=progress) for name in names}


def plan(
    store: Store,
    claims: Sequence[Claim],
    preset: Preset,
    found: Mapping[str, data.Dataset] | None = None,
) -> list[str]:
    """Write down which runs the claims need with the data that are there; their keys, in order.

    ``found`` is what :func:`datasets` returned. A study that was planned with a whole data set
    is not planned anew with the subset: complete, it stands; otherwise it waits for its data.

    Raises:
        DataError: a data set cannot be had, or only the subset for a study begun with all of it.
        StoreError: the store cannot be written.
    """
    found = datasets(claims) if found is None else found
    keys: dict[str, None] = {}
    for claim in claims:
        dataset = found[claim.data]
        before = store.planned(claim.key, preset) if dataset.subset else []
        if any(planned.run.config.edition == "full" for planned in before):
            missing = sum(not planned.run.finished_training for planned in before)
            if missing:
                raise DataError(
                    explain(
                        f"{claim.key} goes on with the data it was begun with, the whole of "
                        f"{dataset.title}",
                        f"only the shipped subset, with {missing} of {len(before)} runs missing",
                        f"fetch it with normkit data fetch {claim.data}, or name another --store",
                    )
                )
            keys.update(dict.fromkeys(planned.run.config.key for planned in before))
            store.note(f"preset:{claim.key}", preset)
            continue
        available = Available(
            "subset" if dataset.subset else "full",
            train=len(dataset.train.labels),
            test=len(dataset.test.labels),
            data=claim.data,
            side=dataset.train.images.shape[-1],
            classes=len(dataset.classes),
        )
        arms = claim.plan(preset, available)
        store.plan(claim.key, preset, arms)
        store.note(f"data:{claim.data}", f"{dataset.title} ({dataset.origin})")
        keys.update(dict.fromkeys(config.key for _, config in arms))
    store.note("preset", preset)
    return list(keys)


def work(
    store: Store,
    keys: Sequence[str],
    executor: Executor,
    *,
    on_run: Callable[[Run], None] = lambda run: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Carry out the runs that are not done; returns when all are, or after Ctrl-C.

    ``on_run`` is called with each run that ended here, as it is stored; ``on_progress`` twice a
    second. Ctrl-C is answered by asking the workers to stop: each saves its state at its next
    step, and the summary says ``interrupted``. A second Ctrl-C is left to the caller.
    """
    summary = Summary()
    begin = time.perf_counter()
    state = store.progress(keys)
    missing = [key for key in keys if state[key][0] not in ("done", "diverged")]
    # What failed before comes last: where a failure ends everything, the others are done by then.
    waiting = collections.deque(sorted(missing, key=lambda key: state[key][0] == "failed"))
    store.retry_failed(keys)
    summary.known = len(keys) - len(waiting)
    deaths: collections.Counter[str] = collections.Counter()
    furthest: dict[str, int] = {}
    held: collections.deque[str] = collections.deque()

    def ended(key: str, result: str | None) -> None:
        if result is None:
            if summary.interrupted:
                return  # the next call takes it up
            _, reached, _ = store.progress([key])[key]
            if reached > furthest.get(key, -1):
                deaths[key] = 0  # it goes on from a checkpoint, and a machine may end any day
            furthest[key] = reached
            deaths[key] += 1
            if deaths[key] < ATTEMPTS:
                waiting.appendleft(key)
                return
            reason = (
                f"The worker process died {ATTEMPTS} times (killed, or out of memory) and came no "
                f"further than step {reached}."
            )
            worker.fail(store.path, key, reason)
            result = "failed"
        if result == "held":
            held.append(key)
        elif result == "failed":
            summary.failed.append(key)
        elif result in ("done", "diverged"):
            summary.finished.append(key)
        run = store.get(key)
        if run is not None and result in ("done", "diverged", "failed"):
            on_run(run)

    def step() -> None:
        while waiting and executor.free:
            executor.submit(worker.argument(store.path, waiting.popleft()))
        for end in executor.wait(TICK_SECONDS):
            ended(worker.key_of(end.argument), end.result)
        on_progress(_progress(store, keys))

    try:
        while waiting or executor.busy or held:
            step()
            if held and not waiting and not executor.busy:
                # All that is left is in other hands; look again which of it is.
                status = store.progress(held)
                for _ in range(len(held)):
                    key = held.popleft()
                    if status[key][0] == "failed":
                        summary.failed.append(key)
                    elif status[key][0] not in ("done", "diverged"):
                        waiting.append(key)
                if waiting:
                    time.sleep(2 * TICK_SECONDS)
    except KeyboardInterrupt:
        summary.interrupted = True
        executor.stop()
        waiting.clear()
        while executor.busy:
            step()
    summary.seconds = time.perf_counter() - begin
    return summary


def _progress(store: Store, keys: Sequence[str]) -> Progress:
    state = store.progress(keys).values()
    over = [entry for entry in state if entry[0] in ("done", "diverged", "failed")]
    return Progress(
        runs_done=len(over),
        runs=len(state),
        steps_done=sum(
            steps if status in ("done", "diverged", "failed") else step
            for status, step, steps in state
        ),
        steps=sum(steps for _, _, steps in state),
    )
