"""Two stores with known runs: which verdicts differ, and how far equal runs are apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from normkit.lab import machine
from normkit.lab.claims import c05
from normkit.lab.claims.claim import Arms, Available
from normkit.lab.compare import StorePair, compare_stores
from normkit.lab.config import RunConfig
from normkit.lab.leases import acquire
from normkit.lab.store import Store

Values = Callable[[str, RunConfig], float]
FIRST, SECOND = "first.sqlite", "second.sqlite"


def arms(preset: Any = "quick") -> Arms:
    return c05.CLAIM.plan(preset, Available("full", 60_000, 10_000))


def helps(arm: str, config: RunConfig) -> float:
    return (0.8 if arm == arms()[0][0] else 0.1) + config.seed / 1000


def helps_not(arm: str, config: RunConfig) -> float:
    return 0.5 - (arm == arms()[0][0]) / 100 + config.seed / 1000


@pytest.fixture
def fill(tmp_path: Path, write_run: Any) -> Callable[..., None]:
    def fill(name: str, preset: str, values: Values) -> None:
        with Store(tmp_path / name) as store:
            store.plan("C5", preset, arms(preset))
            for arm, config in arms(preset):
                known = store.get(config.key)
                if known is not None and not known.finished_training:  # presets share runs
                    value = values(arm, config)
                    write_run(store, config, {"test_accuracy": [value] * config.epochs})

    return fill


@pytest.fixture
def compared(tmp_path: Path) -> Callable[[], StorePair]:
    def compared() -> StorePair:
        before = [(tmp_path / name).read_bytes() for name in (FIRST, SECOND)]
        with (
            Store(tmp_path / FIRST, read_only=True) as first,
            Store(tmp_path / SECOND, read_only=True) as second,
        ):
            found = compare_stores(first, second)
        assert [(tmp_path / name).read_bytes() for name in (FIRST, SECOND)] == before
        return found

    return compared


def test_equal_stores_agree_in_all(fill: Any, compared: Any) -> None:
    fill(FIRST, "quick", helps)
    fill(SECOND, "quick", helps)
    found = compared()
    (claim,) = found.claims
    assert claim.verdicts == ("confirmed", "confirmed")
    assert not claim.differs
    count = len(arms())
    assert (claim.common, claim.planned) == (count, (count, count))
    assert all(each.first == each.second and each.overlap for each in claim.effects)
    assert found.shared.runs == count
    for figure in found.shared.figures:
        assert (figure.equal, figure.largest) == (figure.runs, 0)
    assert found.shared.figures[0].metric == "test_accuracy"
    assert found.shared.figures[0].runs == count
    assert found.shared.time == 1
    assert found.sides[0].machines == (machine.summary(),)
    assert f"torch {machine.versions()['torch']}" in found.sides[1].versions[0]


def test_verdict_that_differs_comes_first_and_the_one_sided_last(
    fill: Any, compared: Any, tmp_path: Path
) -> None:
    for name, values in ((FIRST, helps), (SECOND, helps_not)):
        fill(name, "quick", helps)
        fill(name, "full", values)
    with Store(tmp_path / SECOND) as store:
        store.plan("C5", "paper", arms("paper"))
    found = compared()
    assert [(claim.preset, claim.verdicts) for claim in found.claims] == [
        ("full", ("confirmed", "refuted")),
        ("quick", ("confirmed", "confirmed")),
        ("paper", (None, "open")),
    ]
    different, same, alone = found.claims
    assert (different.differs, same.differs, alone.differs) == (True, False, False)
    assert all(effect.overlap is False for effect in different.effects)
    assert alone.common == 0
    assert all(effect.first is None and effect.overlap is None for effect in alone.effects)


def test_differences_of_last_figures_of_equal_runs(fill: Any, compared: Any) -> None:
    fill(FIRST, "quick", helps)
    fill(SECOND, "quick", lambda arm, run: helps(arm, run) + (run.seed == 1) / 100 * (run.lr > 0))
    found = compared()
    figure = next(each for each in found.shared.figures if each.metric == "test_accuracy")
    apart = [config.key for _, config in arms() if config.seed == 1]
    assert figure.runs == len(arms())
    assert figure.equal == len(arms()) - len(apart)
    assert figure.median == 0
    assert figure.largest == pytest.approx(0.01)
    assert figure.run in apart


def test_runs_that_ended_differently_are_named(fill: Any, compared: Any, tmp_path: Path) -> None:
    fill(FIRST, "quick", helps)
    with Store(tmp_path / SECOND) as store:
        store.plan("C5", "quick", arms()[:2])
        for _, config in arms()[:2]:
            lease = acquire(store, config.key)
            assert lease is not None
            lease.finish(seconds=2.5, diverged_step=3)
    found = compared()
    assert found.shared.runs == 2
    assert found.shared.time == 2.5
    assert [key for key, _, _ in found.shared.endings] == [config.key for _, config in arms()[:2]]
    assert found.shared.endings[0][1:] == ("done", "loss not finite at step 3")
    assert found.shared.figures == ()
