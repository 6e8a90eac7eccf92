"""The remaining time that a study shows, over replays of recorded ones: no clock, no training."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Sequence

import pytest

from normkit.cli.lab_board import about
from normkit.lab.remaining import Cost, Remaining
from tests.lab.recorded.costs import Row, load

TICK, LONG_TICK = 2.0, 10.0
"""Seconds between two looks; the long one in studies of hours."""
START, BETWEEN = 4.0, 0.1
"""Seconds until workers have begun, and between two runs of one."""
REPORTS = 20
"""How often a run reports how far it has come."""


@dataclasses.dataclass
class Replay:
    """What was shown, at each tick, and what was true."""

    shown: list[float | None]
    true: list[float]
    restarts: int

    @property
    def rise(self) -> float:
        """The largest ratio of what a person reads to the least that stood there before.

        A second is the unit in which it is read, so a rise by less is none.
        """
        least, rise = math.inf, 0.0
        for value in (about(each) for each in self.shown if each is not None):
            if least < math.inf:
                rise = max(rise, (value - 1) / least if least else math.inf if value else 0.0)
            least = min(least, value)
        return rise

    def errors(self) -> list[float]:
        """How far off it was after the first tenth, as a share of the whole."""
        whole = max(self.true)
        late = zip(self.shown, self.true, strict=True)
        return [
            abs(shown - true) / whole
            for shown, true in late
            if shown is not None and true < 0.9 * whole
        ]


def replay(
    rows: Sequence[Row],
    *,
    done: int = 0,
    workers: int = 2,
    speed: float = 1.0,
    slower: tuple[float, float] | None = None,
) -> Replay:
    """Carry out recorded runs on paper.

    Args:
        done: runs that were in the store already.
        speed: of the machine, relative to that of the record.
        slower: from which second on the machine is how many times as slow.
    """
    keys = [str(number) for number in range(len(rows))]
    remaining = Remaining(
        {key: Cost(row.expected, row.kind, row.alone) for key, row in zip(keys, rows, strict=True)},
        workers,
    )
    seconds = {key: row.seconds / speed for key, row in zip(keys, rows, strict=True)}
    row_of = dict(zip(keys, rows, strict=True))
    for key in keys[:done]:
        remaining.learn(key, seconds[key], whole=row_of[key].whole)

    begin, end = {}, {}
    free = [START] * workers
    for key in keys[done:]:
        at = max(free) if row_of[key].alone else free[0]
        begin[key] = at
        end[key] = _end(at, seconds[key], slower)
        if row_of[key].alone:
            free = [end[key] + BETWEEN] * workers
        else:
            heapq.heapreplace(free, end[key] + BETWEEN)
    last = max(end.values())
    tick = TICK if last < 3000 else LONG_TICK

    shown: list[float | None] = []
    true = []
    shares, ended = dict.fromkeys(keys, 0.0), set(keys[:done])
    shares |= dict.fromkeys(keys[:done], 1.0)
    active: set[str] = set()
    waiting = sorted(begin, key=lambda key: begin[key], reverse=True)
    now = 0.0
    while now <= last:
        now += tick
        while waiting and begin[waiting[-1]] <= now:
            active.add(waiting.pop())
        for key in list(active):
            if end[key] <= now:
                active.discard(key)
                ended.add(key)
                shares[key] = 1.0
                remaining.learn(key, end[key] - begin[key], whole=row_of[key].whole)
            else:
                part = (now - begin[key]) / (end[key] - begin[key])
                shares[key] = math.floor(part * REPORTS) / REPORTS
        shown.append(remaining.update(now, shares, ended))
        true.append(max(0.0, last - now))
    return Replay(shown, true, remaining.restarts)


def _end(begin: float, seconds: float, slower: tuple[float, float] | None) -> float:
    if slower is None or begin + seconds <= slower[0]:
        return begin + seconds
    before = max(0.0, slower[0] - begin)
    return begin + before + (seconds - before) * slower[1]


def of(preset: str, *claims: str) -> list[Row]:
    rows = load(preset)
    return [row for row in rows if not claims or set(claims) & set(row.claims)]


STUDIES = {
    "tour's claims": of("full", "C1", "C3", "C16", "C19", "C24"),
    "full": of("full"),
    "seven": of("full", "C1", "C3", "C5", "C6", "C10", "C16", "C19"),
    "C24": of("full", "C24"),
    "C14": of("full", "C14", "C4"),
    "C9": of("full", "C9"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "full")) for n in STUDIES]
)
@pytest.mark.parametrize("part", [0.0, 0.5, 0.9])
def test_never_rises_by_more_than_a_tenth_and_ends_at_zero(name: str, part: float) -> None:
    rows = STUDIES[name]
    for speed, workers in ((1.0, 2), (0.15, 2), (2.5, 4)):
        shown = replay(rows, done=int(part * len(rows)), speed=speed, workers=workers)
        assert shown.shown[-1] == 0.0
        assert shown.rise <= 1.1, (speed, workers)
        assert shown.restarts == 0, (speed, workers)


@pytest.mark.parametrize("part", [0.0, 0.5])
def test_is_honest(part: float) -> None:
    for name in ("tour's claims", "full", "seven", "C24"):
        rows = STUDIES[name]
        errors = sorted(replay(rows, done=int(part * len(rows))).errors())
        assert errors[len(errors) // 2] < 0.07, name
        # In the full study six runs of C8 took ten times as long as others of their kind.
        assert errors[-1] < (0.2 if name == "full" else 0.15), name


def test_resumed_study_shows_a_time_at_once_and_a_new_one_does_not() -> None:
    rows = STUDIES["seven"]
    assert replay(rows, done=len(rows) // 2).shown[0] is not None
    assert replay(rows).shown[0] is None


@pytest.mark.parametrize("name", ["seven", "tour's claims", "C24"])
def test_a_machine_that_becomes_much_slower_is_told(name: str) -> None:
    shown = replay(STUDIES[name], slower=(300.0, 4.0))
    assert shown.restarts > 0
    assert shown.rise > 1.1
    assert shown.shown[-1] == 0.0


def test_a_run_that_is_repeated_is_told() -> None:
    remaining = Remaining({"a": Cost(10.0), "b": Cost(10.0)}, 1)
    remaining.learn("a", 10.0)
    assert remaining.update(0.0, {"a": 1.0, "b": 0.5}, {"a"}) is not None
    before = remaining.shown
    assert before is not None
    again = remaining.update(1.0, {"a": 0.0, "b": 0.5}, set())
    assert again is not None and again > before
    assert remaining.restarts == 1


def test_nothing_left_is_zero() -> None:
    remaining = Remaining({"a": Cost(10.0)}, 2)
    remaining.learn("a", 10.0)
    assert remaining.update(0.0, {"a": 1.0}, {"a"}) == 0.0
    assert Remaining({}, 2).update(0.0, {}, ()) == 0.0
