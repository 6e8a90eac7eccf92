"""C15 on invented runs: errors by estimator, each part holding or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c15, estimators
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]

# By how much each part of the claim holds.
HOLDS = {"jump": 0.05, "excess": 0.04, "two": 0.02, "more": 0.001}


def invented(arm: str, config: RunConfig, parts: Mapping[str, float]) -> Values:
    rng = np.random.default_rng([config.seed, config.batch_size])

    def noise() -> float:
        return float(rng.normal(0, 0.0005))

    truth = [0.3 - 0.02 * epoch for epoch in range(config.epochs)]
    excess = parts["excess"] if arm == c15.LARGE else 0.0
    error = [
        each + 0.02 + excess + (parts["jump"] if epoch % 2 else 0.0) + noise()
        for epoch, each in enumerate(truth)
    ]
    found: dict[str, Sequence[float | None]] = {
        "test_accuracy": [1 - each for each in error],
        "epoch_train_loss": truth,
    }
    for condition in config.final_evaluations:
        _, samples, batch = condition
        worse = parts["two"] if batch == 2 else 0.0
        worse += parts["more"] if int(samples) <= 1000 else 0.0
        found[named("test_accuracy", condition)] = [1 - truth[-1] - worse + noise()]
    for condition in config.evaluations:
        found[named("test_accuracy", condition)] = [1 - each + noise() for each in truth]
    return found


def judged(synthetic: Synthetic, parts: Mapping[str, float]) -> Any:
    evidence = synthetic(c15.CLAIM, lambda arm, config: invented(arm, config, parts))
    return finding(c15.CLAIM, evidence, data="invented")


def test_supported_where_all_parts_hold(synthetic: Synthetic, check_finding: Any) -> None:
    found = judged(synthetic, HOLDS)
    check_finding(c15.CLAIM, found)
    assert found.word == "supported"
    effects = [each.effect for each in found.comparisons if each.decides]
    # Jumps of 0.05 up and down around a fall of 0.02: on average 0.05 - 0.02 / 3 against 0.02.
    assert effects == pytest.approx([0.05 - 0.02 / 3 - 0.02, 0.04, 0.02, 0.009], abs=0.002)


@pytest.mark.parametrize(
    ("part", "value"), [("jump", 0.0), ("excess", 0.0), ("two", 0.001), ("more", 0.02)]
)
def test_each_part_must_hold(synthetic: Synthetic, part: str, value: float) -> None:
    found = judged(synthetic, HOLDS | {part: value})
    assert found.word == "not supported"
    failing = list(HOLDS).index(part)
    deciding = [each for each in found.comparisons if each.decides]
    for index, comparison in enumerate(deciding):
        assert (comparison.word == "supported") == (index != failing)


@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    evidence = synthetic(
        c15.CLAIM, lambda arm, config: invented(arm, config, HOLDS) if config.seed < seeds else None
    )
    found = check_partial(c15.CLAIM, evidence, seeds)
    # Four that decide, and one for information.
    assert len(found.comparisons) == (0 if seeds < 2 else 5)


def test_charts_and_the_published_table(synthetic: Synthetic) -> None:
    found = judged(synthetic, HOLDS)
    by_key = {chart.key: chart for chart in found.charts}
    assert set(by_key) == {"epochs", "samples", "batches"}
    assert len(by_key["epochs"].lines) == 4
    assert by_key["samples"].lines[0].x == (100, 300, 1000, 3000, 10_000)
    assert by_key["batches"].lines[0].x == (2, 10, 100, 1000)
    published = by_key["batches"].lines[-1]
    assert published.role == "published"
    assert (published.x, published.y) == ((2, 10, 100), (0.288, 0.24, 0.235))
    rows = {row[0]: row[1:] for row in found.tables[0].rows}
    assert rows["published, ImageNet, SGD batch 2"] == (35.5, 34.4, 32.3, 32.0, None)
    # The last error of the truth is 24 %, batches of 2 add 2 points and few images 0.1.
    assert rows[c15.LARGE][1:] == pytest.approx((26.1, 24.1, 24.1, 24.1), abs=0.1)


def test_full_measures_the_whole_grid() -> None:
    quick, full = (estimators.grid(preset, 60_000) for preset in ("quick", "full"))
    assert set(quick) < set(full)
    assert ("population", 10_000, 2) in full
    assert all(samples >= batch for _, samples, batch in full)  # type: ignore[operator]
    assert max(samples for _, samples, _ in estimators.grid("quick", 5000)) == 5000


def test_a_small_subset_is_judged_too(synthetic: Synthetic) -> None:
    arms = c15.plan("quick", Available("subset", 5000, 1000))
    assert {config.evaluations for _, config in arms} == {(("population", 3000, 100),)}
    run = synthetic(c15.CLAIM, lambda arm, config: invented(arm, config, HOLDS)).runs[0]
    assert estimators.most(run) == 10_000
