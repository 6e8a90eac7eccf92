"""C15: estimators of statistics, on invented errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from normkit.lab.claims.c15 import CLAIM, LARGE
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.claims.measures.estimators import MOVING, jumps, most
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding
from tests.lab.claims.invented import evidence

# By how much each part of the claim holds.
HOLDS = {"jump": 0.05, "excess": 0.04, "two": 0.02, "more": 0.001}


def invented(arm: str, config: RunConfig, parts: Mapping[str, float]) -> Mapping[str, Sequence]:
    rng = np.random.default_rng([config.seed, config.batch_size])

    def noise() -> float:
        return float(rng.normal(0, 0.0005))

    truth = [0.3 - 0.02 * epoch for epoch in range(config.epochs)]
    excess = 0.02 + parts["excess"] * (arm == LARGE)
    error = [e + excess + parts["jump"] * (i % 2) + noise() for i, e in enumerate(truth)]
    found: dict[str, Sequence[float]] = {"test_accuracy": [1 - each for each in error]}
    for condition in config.final_evaluations:
        _, samples, batch = condition
        worse = parts["two"] * (batch == 2) + parts["more"] * (int(samples) <= 1000)
        found[named("test_accuracy", condition)] = [1 - truth[-1] - worse + noise()]
    for condition in config.evaluations:
        found[named("test_accuracy", condition)] = [1 - each + noise() for each in truth]
    return found


@pytest.mark.parametrize(
    ("part", "value"), [("", 0), ("jump", 0), ("excess", 0), ("two", 0.001), ("more", 0.02)]
)
def test_each_part_must_hold(synthetic: Callable[..., Evidence], part: str, value: float) -> None:
    parts = HOLDS | {part: value}
    runs = synthetic(CLAIM, lambda arm, config: invented(arm, config, parts))
    found = finding(CLAIM, runs, data="invented")
    assert found.word == ("partly" if part else "confirmed")
    deciding = [each for each in found.comparisons if each.decides]
    for name, comparison in zip(HOLDS, deciding, strict=True):
        assert (comparison.word == "confirmed") == (name != part)
    if not part:
        # From the second epoch on, 0.05 down and up on a fall of 0.02: 0.07 and 0.03 against 0.02.
        effects = [100 * (0.05 - 0.02), 4, 2, -0.1]
        assert [each.effect for each in deciding] == pytest.approx(effects, abs=0.2)


def test_jumps_are_changes_from_epoch_to_epoch() -> None:
    run = evidence(CLAIM, "quick").of(LARGE)[0]
    values = [value for _, value in MOVING.curve(run) if value is not None]
    changes = [abs(after - before) for before, after in itertools.pairwise(values)]
    assert jumps(MOVING, "").read(run) == pytest.approx(sum(changes) / len(changes))
    assert jumps(MOVING, "", first=3).read(run) == pytest.approx(changes[-1])


def test_paper_measures_the_whole_grid() -> None:
    full, paper = (
        CLAIM.plan(preset, Available("full", 60_000, 10_000))[0][1].final_evaluations
        for preset in ("full", "paper")
    )
    assert set(full) < set(paper)
    assert ("population", 10_000, 2) in paper
    assert all(samples >= batch for _, samples, batch in paper)  # type: ignore[operator]


def test_a_small_subset_has_fewer_images_to_estimate_from() -> None:
    small = CLAIM.plan("quick", Available("subset", 5000, 1000))
    assert {config.evaluations for _, config in small} == {(("population", 3000, 100),)}
    assert {samples for _, samples, _ in small[0][1].final_evaluations} == {
        100,
        300,
        1000,
        3000,
        5000,
    }
    assert most(evidence(CLAIM, "quick").runs[0]) == 10_000
