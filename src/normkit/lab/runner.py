"""Run what a study lacks: plan it in the store, hand its runs to an executor, follow them.

All state is in the store, so a call that is stopped, killed or repeated does only what is missing,
and two calls at once share the work: a run that another process holds is left to it, and taken
over if that process dies.

Runs that measure the time of a step come first, one at a time: nothing else runs beside them here.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from normkit.errors import DataError, message
from normkit.lab import data, worker
from normkit.lab.claims.claim import Available, Claim, Preset
from normkit.lab.executors import Executor
from normkit.lab.progress import RESULTS, Progress, progress_of
from normkit.lab.runs import Run
from normkit.lab.store import Store

__all__ = ["Queue", "Summary", "datasets", "plan", "work"]

ATTEMPTS = 2
"""After so many deaths of its worker without progress in between, a run has failed."""

TICK_SECONDS = 0.5


@dataclasses.dataclass
class Summary:
    """The result of a call of :func:`work`, by the keys of the runs; ``known`` were done before."""

    known: int = 0
    finished: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0


def datasets(
    claims: Sequence[Claim], preset: Preset, *, progress: bool = False
) -> dict[str, data.Dataset]:
    """Load the data that the claims need at this preset, by name.

    A data set that is missing is fetched; where that fails, the shipped subset takes its place
    and the findings say so.

    Raises:
        DataError: a data set cannot be had at all.
    """
    names = dict.fromkeys(name for claim in claims for name in claim.data_sets(preset))
    return {name: data.load(name, progress=progress) for name in names}


def plan(
    store: Store,
    claims: Sequence[Claim],
    preset: Preset,
    loaded: Mapping[str, data.Dataset] | None = None,
) -> list[str]:
    """Plan the runs that the claims need, with the data available; return their keys, in order.

    ``loaded`` is the result of :func:`datasets`. A study planned with a full data set is
    not planned again with the subset: complete, it stands; otherwise it waits for its data.

    Raises:
        DataError: a data set cannot be had, or only the subset for a study begun with all of it.
        StoreError: the store cannot be written.
    """
    loaded = datasets(claims, preset) if loaded is None else loaded
    keys: dict[str, None] = {}
    for claim in claims:
        dataset = loaded[claim.data]
        before = store.planned(claim.key, preset) if dataset.subset else []
        if any(planned.run.config.edition == "full" for planned in before):
            missing = sum(not planned.run.finished_training for planned in before)
            if missing:
                raise DataError(
                    message(
                        f"all of {dataset.title}, with which {claim.key} was begun",
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
        for name in dict.fromkeys(config.data for _, config in arms):
            store.note(f"data:{name}", f"{loaded[name].title} ({loaded[name].origin})")
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
    """Carry out the unfinished runs; return when all are finished, or after Ctrl-C.

    ``on_run`` is called with each run that ended here, once it is stored; ``on_progress`` twice a
    second. On Ctrl-C the workers are asked to stop: each saves its state at its next step, and the
    summary says ``interrupted``. A second Ctrl-C is left to the caller.
    """
    begin = time.perf_counter()
    queue = Queue(store, keys, executor, on_run, on_progress)
    try:
        queue.run()
    except KeyboardInterrupt:
        queue.interrupt()
    queue.summary.seconds = time.perf_counter() - begin
    return queue.summary


class Queue:
    """The unfinished runs of one call of :func:`work`: those that wait here, and those elsewhere.

    Attributes:
        waiting: keys of the runs to submit, in order.
        alone: keys of those that nothing may run beside.
        elsewhere: keys of the runs that another process has taken.
    """

    def __init__(
        self,
        store: Store,
        keys: Sequence[str],
        executor: Executor,
        on_run: Callable[[Run], None],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.store, self.keys, self.executor = store, keys, executor
        self.on_run, self.on_progress = on_run, on_progress
        state = store.progress(keys)
        unfinished = [key for key in keys if state[key][0] not in RESULTS]
        configs = store.configs(unfinished)
        self.alone = {key for key, config in configs.items() if config.kind == "timing"}
        # What failed before comes last: if a failure ends everything, the others are done by then.
        self.waiting = deque(
            sorted(unfinished, key=lambda key: (state[key][0] == "failed", key not in self.alone))
        )
        self._here: set[str] = set()
        self.elsewhere: deque[str] = deque()
        self.summary = Summary(known=len(keys) - len(unfinished))
        self._deaths: Counter[str] = Counter()
        self._furthest: dict[str, int] = {}
        store.retry_failed(keys)

    def run(self) -> None:
        """Carry out all runs; wait for those that are elsewhere."""
        while self.waiting or self.executor.busy or self.elsewhere:
            self.step()
            if self.elsewhere and not self.waiting and not self.executor.busy:
                self.look_elsewhere()

    def interrupt(self) -> None:
        """Submit nothing more, and stop what runs here."""
        self.summary.interrupted = True
        self.executor.stop()
        self.waiting.clear()
        while self.executor.busy:
            self.step()

    def step(self) -> None:
        """Submit what the executor has room for, and take in what has ended."""
        while self.waiting and self.executor.free and self.may_start(self.waiting[0]):
            key = self.waiting.popleft()
            self._here.add(key)
            self.executor.submit(worker.argument(self.store.path, key))
        for job in self.executor.wait(TICK_SECONDS):
            key = worker.key_of(job.argument)
            self._here.discard(key)
            self.end(key, job.result)
        stopping = self.summary.interrupted
        self.on_progress(progress_of(self.store, self.keys, stopping=stopping))

    def may_start(self, key: str) -> bool:
        """Return False while a run that measures time would not be the only one here."""
        return not self._here if key in self.alone else self._here.isdisjoint(self.alone)

    def end(self, key: str, result: str | None) -> None:
        """Take in the end of a run; a ``result`` of None means that its worker died."""
        if result is None:
            if self.summary.interrupted or self.retry(key):
                return  # interrupted: the next call takes it up
            result = "failed"
        if result == "held":
            self.elsewhere.append(key)
        elif result == "failed":
            self.summary.failed.append(key)
        elif result in RESULTS:
            self.summary.finished.append(key)
        run = self.store.get(key)
        if run is not None and result in (*RESULTS, "failed"):
            self.on_run(run)

    def retry(self, key: str) -> bool:
        """Queue a run whose worker died, or store it as failed; return whether it is queued."""
        _, step, _ = self.store.progress([key])[key]
        if step > self._furthest.get(key, -1):
            self._deaths[key] = 0  # it resumes from a checkpoint, and a machine may end any day
        self._furthest[key] = step
        self._deaths[key] += 1
        if self._deaths[key] < ATTEMPTS:
            self.waiting.appendleft(key)
            return True
        reason = (
            f"The worker process died {ATTEMPTS} times (killed, or out of memory) without getting "
            f"past step {step}."
        )
        worker.fail(self.store.path, key, reason)
        return False

    def look_elsewhere(self) -> None:
        """Queue the runs elsewhere that have not finished: their process may have died."""
        state = self.store.progress(self.elsewhere)
        for key in self.elsewhere:
            if state[key][0] == "failed":
                self.summary.failed.append(key)
            elif state[key][0] not in RESULTS:
                self.waiting.append(key)
        self.elsewhere.clear()
        if self.waiting:
            time.sleep(2 * TICK_SECONDS)
