"""C24 on invented runs: scores that spread, and those of the same weights that do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c24
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]
FULL = Available("full", 60_000, 10_000)


def scores(moving: tuple[float, float], population: tuple[float, float]) -> Any:
    """Each estimator's scores as (mean, standard deviation) over the seeds."""

    def values(arm: str, config: RunConfig) -> Values:
        rng = np.random.default_rng([config.seed, len(arm)])

        def row(mean: float, spread: float) -> list[float]:
            return [float(v) for v in np.round(rng.normal(mean, spread, config.epochs), 4)]

        found = {
            "test_accuracy": row(*moving),
            "epoch_train_accuracy": row(0.9, 0.001),
            "epoch_train_loss": row(0.3, 0.001),
        }
        for condition in config.evaluations:
            found[named("test_accuracy", condition)] = row(*population)
        return found

    return values


NOISY, CALM = (0.82, 0.03), (0.87, 0.004)


def test_supported_where_both_parts_hold(synthetic: Synthetic, check_finding: Any) -> None:
    found = finding(c24.CLAIM, synthetic(c24.CLAIM, scores(NOISY, CALM)), data="invented")
    check_finding(c24.CLAIM, found)
    assert found.word == "supported"
    assert found.comparisons[0].effect == pytest.approx(0.05, abs=0.03)
    assert found.comparisons[1].effect == pytest.approx(np.log2(0.03 / 0.004), abs=1)
    assert found.comparisons[2].effect == pytest.approx(0.05, abs=0.01)
    assert [each.seeds for each in found.comparisons] == [10, 10, 10]


@pytest.mark.parametrize(
    ("population", "words"),
    [
        ((0.87, 0.06), ["supported", "not supported"]),  # higher, and more noise
        ((0.82, 0.001), ["undecided", "supported"]),  # less noise, no points
        ((0.70, 0.001), ["not supported", "supported"]),
    ],
)
def test_one_part_is_not_enough(
    synthetic: Synthetic, population: tuple[float, float], words: list[str]
) -> None:
    found = finding(c24.CLAIM, synthetic(c24.CLAIM, scores(NOISY, population)), data="invented")
    assert [each.word for each in found.comparisons[:2]] == words
    assert found.word != "supported"


@pytest.mark.parametrize("seeds", [0, 1, 2, 4])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    values = scores(NOISY, CALM)
    evidence = synthetic(c24.CLAIM, lambda a, c: values(a, c) if c.seed < seeds else None)
    found = check_partial(c24.CLAIM, evidence, seeds)
    # A mean needs two seeds, a ratio of spreads three.
    assert len(found.comparisons) == {0: 0, 1: 0, 2: 2}.get(seeds, 3)


def test_every_seed_lies_in_the_band_and_the_book_stands_beside(synthetic: Synthetic) -> None:
    evidence = synthetic(c24.CLAIM, scores(NOISY, CALM))
    judgement = c24.judge(evidence)
    (chart,) = judgement.charts
    line = next(line for line in chart.lines if line.arm == c24.MOVING and line.role == "data")
    last = [run.last("test_accuracy") for run in evidence.of(c24.LENET)]
    assert (line.low[-1], line.high[-1]) == (min(last), max(last))
    published = next(line for line in chart.lines if line.role == "published")
    assert (published.x, published.y) == ((10,) * 3, (0.571, 0.892, 0.846))
    table = next(table for table in judgement.tables if table.key == "published")
    assert [row[0] for row in table.rows] == [
        f"{c24.LENET}, moving average",
        f"{c24.LENET}, population statistics",
        f"{c24.LENET}, published",
        f"{c24.PLAIN}, published",
        f"{c24.DENSENET}, published",
    ]
    assert table.rows[2] == (f"{c24.LENET}, published", None, 0.571, 0.846, 0.892, 0.067, ".90–.91")
    assert table.rows[0][2] == min(last)


def test_full_shows_all_networks(synthetic: Synthetic) -> None:
    # As the quick preset's evidence is made, from the plan of the full one.
    claim = dataclasses.replace(c24.CLAIM, plan=lambda _, available: c24.plan("full", available))
    found = finding(claim, synthetic(claim, scores(NOISY, CALM)), data="invented")
    assert found.word == "supported"
    assert [each.seeds for each in found.comparisons] == [10, 10, 10, 5, 5]
    assert [chart.key for chart in found.charts] == ["epochs-lenet", "epochs-densenet"]
    rows = {row[0]: row for row in found.tables[0].rows}
    assert rows[f"{c24.PLAIN}, no statistics"][1] == 3
    assert rows[f"{c24.DENSENET}, {c24.POPULATION}"][1] == 5
    assert rows[f"{c24.DENSENET}, published"][2:] == (0.406, 0.882, 0.918, 0.068, None)


def test_the_plan_is_the_books(synthetic: Synthetic) -> None:
    arms = c24.plan("quick", FULL)
    config = next(config for arm, config in arms if arm == c24.LENET)
    assert dict(config.model_options) == {"padding": 0, "pool": "avg", "init": "xavier"}
    assert (config.act, config.lr, config.batch_size, config.epochs) == ("sigmoid", 1.0, 256, 10)
    assert config.train_images == 60_000
    assert config.evaluations == (("population", 10_000, 256),)
    assert [arm for arm, _ in arms] == [c24.LENET] * 10
    assert {arm for arm, _ in c24.plan("full", FULL)} == {c24.LENET, c24.PLAIN, c24.DENSENET}
    subset = c24.plan("quick", Available("subset", 5000, 1000))
    assert subset[0][1].evaluations == (("population", 5000, 256),)
