"""Remaining time of a study: from the expected time of its runs and the progress of those so far.

:mod:`normkit.lab.cost` says what a run takes on a machine like ours. Three things are learned while
runs go on, or read from those that the store has already:

* per kind of run (model, normalizer, activation), the ratio of measured to expected time, drawn
  towards that of all runs where there are few, of which later ones count more: the machine may have
  become slower;
* the time of a worker between two runs, which counts where runs take a second;
* what is left of a run in progress, by its own pace.

The runs that are left are then dealt to the workers in order, which gives the time until the last
one ends. It is shown with an allowance for kinds of runs that have not been seen yet, smoothed, and
never more than a twentieth above the least shown before: a time that keeps rising tells nothing.
Where that would hide that a machine has become much slower, or that runs failed and are repeated,
it is given up (:attr:`Remaining.restarts` counts these).

In replays of recorded studies, from the start and resumed, it was off by less than 7 % of the whole
at the median after the first tenth of the time, and by a fifth at most
(``tests/lab/test_remaining.py``).
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Iterable, Mapping

__all__ = ["Cost", "Remaining"]

RISE = 1.05
"""What is shown is at most this many times the least shown before; with what is lost in rounding it
to what a person reads (``about`` of the board), a tenth."""
RESTART, RESTART_SECONDS = 1.6, 30.0
"""From this many times what is shown on, for so long, a rise is shown after all."""
PRIOR_RUNS = 2.0
"""Weight of all runs' ratio in that of a kind, in runs of the kind."""
PRIOR_SECONDS = 4.0
"""Weight of the expected time beside what is measured, in seconds of one worker."""
BETWEEN, BETWEEN_RUNS = 0.2, 5.0
"""Seconds of a worker between two runs, before they are measured, and their weight in runs."""
START_SECONDS = 3.0
"""Time until the workers have begun."""
HALF_LIFE = 600.0
"""Expected seconds of each worker after which a run counts half in the ratio of all runs."""
ALLOWANCE = 0.15
"""Share added for runs of kinds without a measurement."""
FIRST_SECONDS, PATIENCE = 8.0, 60.0
"""Expected seconds of work of each worker that are measured before anything is shown: by a machine
that is slower than expected, over a longer time. But no longer than this."""
SMOOTH_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """Expected seconds of a run, its kind, and whether nothing runs beside it."""

    seconds: float
    kind: str = ""
    alone: bool = False


@dataclasses.dataclass
class _Pace:
    """A run in progress: where it was first noticed, and when it was last seen to move."""

    began: float
    first: float
    last_seen: float
    share: float
    step: float = 0.0

    def look(self, now: float, share: float) -> None:
        if share > self.share:
            self.step, self.last_seen, self.share = share - self.share, now, share


class Remaining:
    """Estimate of the time that a study still takes.

    Args:
        runs: cost of each run, in the order in which they are started.
        workers: how many are carried out at once.
    """

    def __init__(self, runs: Mapping[str, Cost], workers: int) -> None:
        self.runs, self.workers = dict(runs), max(1, workers)
        self.restarts = 0
        self.shown: float | None = None
        self._place = {key: place for place, key in enumerate(self.runs)}
        of_kind: dict[str, list[float]] = {}
        for cost in self.runs.values():
            of_kind.setdefault(cost.kind, []).append(cost.seconds)
        self._typical = {kind: sum(each) / len(each) for kind, each in of_kind.items()}
        self._measured: dict[str, tuple[float, float]] = {}
        self._work = 0.0
        self._learned_at: dict[str, float] = {}
        self._begin: float | None = None
        self._started: float | None = None
        self._now: float | None = None
        self._last = 0.0
        self._before: dict[str, float] = {}
        self._shares: dict[str, float] = {}
        self._ended: frozenset[str] = frozenset()
        self._paces: dict[str, _Pace] = {}
        self._busy = 0.0
        self._smooth: float | None = None
        self._least = math.inf
        self._above_since: float | None = None
        self._learned = 0.0

    def learn(self, key: str, seconds: float, *, whole: bool = True) -> None:
        """Take in what a run has taken; not ``whole`` where it may have ended early."""
        if key in self.runs and seconds > 0:
            if self._begin is not None:
                self._work += self.runs[key].seconds / self.workers
            self._learned_at[key] = self._work
            self._measured[key] = seconds, self.runs[key].seconds if whole else 0.0
            if self._begin is None and whole:
                self._learned += seconds

    def update(
        self, now: float, shares: Mapping[str, float], ended: Iterable[str] = ()
    ) -> float | None:
        """Take in how far the runs have come at a time in seconds; return what to show.

        None until enough is measured.
        """
        ended = frozenset(ended)
        self._started = now if self._started is None else self._started
        if self._begin is None and (self._shares or ended == self.runs.keys()):
            begun = any(share > self._shares.get(key, 0.0) for key, share in shares.items())
            if begun or ended == self.runs.keys():
                self._begin, self._now, self._before = now, now, dict(shares)
        if self._begin is not None and self._now is not None:
            self._busy += (now - self._now) * self._workers_busy()
            self._now = now
            for key in self.runs.keys() - ended:
                if (share := shares.get(key, 0.0)) > self._before.get(key, 0.0):
                    pace = self._paces.setdefault(key, _Pace(now, share, now, share))
                    pace.look(now, share)
        for key in ended:
            self._paces.pop(key, None)
        again = self._ended - ended
        self._shares, self._ended = dict(shares), ended
        self._show(now, again=bool(again))
        return self.shown

    def _workers_busy(self) -> int:
        rest = self.runs.keys() - self._ended
        if any(self.runs[key].alone and self._shares.get(key, 0.0) > 0 for key in rest):
            return 1
        return min(self.workers, len(rest))

    def _show(self, now: float, *, again: bool) -> None:
        if self._ended >= self.runs.keys():
            self.shown = 0.0
            return
        if not self._is_known():
            return
        raw = self._raw(now)
        elapsed = now - self._last
        weight = 1 - math.exp(-elapsed / SMOOTH_SECONDS)
        before = raw if self._smooth is None else max(0.0, self._smooth - elapsed)
        self._smooth = raw if self._smooth is None else before + weight * (raw - before)
        self._last = now
        limit = RISE * self._least
        if self._smooth <= RESTART * limit:
            self._above_since = None
        elif self._above_since is None:
            self._above_since = now
        slower = self._above_since is not None and now - self._above_since > RESTART_SECONDS
        if again or slower:
            self.restarts += 1
            self._least, self._above_since = math.inf, None
            self._smooth = raw
            limit = math.inf
        self.shown = min(self._smooth, limit)
        self._least = min(self._least, self.shown)

    def _is_known(self) -> bool:
        measured = self._learned + sum(
            (share - self._before.get(key, 0.0)) * self.runs[key].seconds
            for key, share in self._shares.items()
            if self._begin is not None and key in self.runs
        )
        return max(measured / FIRST_SECONDS, self._busy / PATIENCE) >= self.workers

    # Estimation -----------------------------------------------------------------------------

    def _raw(self, now: float) -> float:
        """Return the time until the last run ends, if all goes as so far."""
        ratio = self._ratios(now)
        took = {key: cost.seconds * ratio[cost.kind] for key, cost in self.runs.items()}
        between = self._between(took, now)
        rest = [
            (self._rest(key, took[key], between, now), self.runs[key].alone)
            for key in sorted(self.runs.keys() - self._ended, key=self._order)
        ]
        start = 0.0
        if self._begin is None and self._started is not None:
            start = max(0.0, START_SECONDS - (now - self._started))
        return start + _makespan(rest, self.workers)

    def _order(self, key: str) -> tuple[bool, int]:
        return self._shares.get(key, 0.0) <= 0, self._place[key]

    def _ratios(self, now: float) -> dict[str, float]:
        """Return measured over expected time of each kind, with its allowance."""
        measured: dict[str, list[tuple[float, float]]] = {kind: [] for kind in self._typical}
        all_seconds = all_expected = PRIOR_SECONDS * self.workers
        for key, (seconds, expected) in self._measured.items():
            if expected:
                measured[self.runs[key].kind].append((seconds, expected))
                counts = 0.5 ** ((self._work - self._learned_at[key]) / HALF_LIFE)
                all_seconds += counts * seconds
                all_expected += counts * expected
        for key, pace in self._paces.items():
            work = (pace.share - pace.first) * self.runs[key].seconds
            if work > 0 and pace.last_seen > pace.began:
                measured[self.runs[key].kind].append((pace.last_seen - pace.began, work))
                all_seconds += pace.last_seen - pace.began
                all_expected += work
        of_all = all_seconds / all_expected
        ratios = {}
        for kind, of in measured.items():
            weight = PRIOR_RUNS * self._typical[kind]
            seconds, expected = sum(s for s, _ in of), sum(e for _, e in of)
            unseen = weight / (weight + expected)
            ratio = (seconds + weight * of_all) / (expected + weight)
            ratios[kind] = ratio * (1 + ALLOWANCE * unseen)
        return ratios

    def _between(self, took: Mapping[str, float], now: float) -> float:
        """Return the seconds of a worker between two runs."""
        here = [key for key in self._ended if self._before.get(key, 0.0) < 1]
        working = sum(
            (1 - self._before.get(key, 0.0)) * self._measured.get(key, (took[key], 0.0))[0]
            for key in here
        )
        working += sum(now - pace.began for pace in self._paces.values())
        idle = max(0.0, self._busy - working)
        return (idle + BETWEEN * BETWEEN_RUNS) / (len(here) + BETWEEN_RUNS)

    def _rest(self, key: str, seconds: float, between: float, now: float) -> float:
        share = self._shares.get(key, 0.0)
        if (pace := self._paces.get(key)) is not None:
            # Between two reports it goes on, as far as it went between the last two.
            share += min(pace.step, (now - pace.last_seen) / max(seconds, 1e-9))
            if pace.share > pace.first and pace.last_seen > pace.began:
                pace_of_run = (pace.last_seen - pace.began) / (pace.share - pace.first)
                seconds = pace.share * pace_of_run + (1 - pace.share) * seconds
        return max(0.0, 1 - share) * seconds + (0.0 if share > 0 else between)


def _makespan(runs: Iterable[tuple[float, bool]], workers: int) -> float:
    """Return the time in which the workers carry out runs, in order.

    >>> _makespan([(3.0, False), (1.0, False), (1.0, False), (2.0, True)], 2)
    5.0
    """
    free = [0.0] * workers
    for seconds, alone in runs:
        if alone:
            free = [max(free) + seconds] * workers
        else:
            heapq.heapreplace(free, free[0] + seconds)
    return max(free)
