"""C10 on invented runs: an average that falls behind, and those that do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c10
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]


def behind(cumulative: float, others: float) -> Any:
    """How far each average is behind batch statistics in the last epoch, growing from nothing."""

    def values(arm: str, config: RunConfig) -> Values:
        rng = np.random.default_rng([config.seed, len(arm)])
        batch = [0.8 + 0.01 * epoch + rng.normal(0, 0.002) for epoch in range(config.epochs)]
        lost = cumulative if arm == c10.CUMULATIVE else others
        share = [epoch / (config.epochs - 1) for epoch in range(config.epochs)]
        own = [each - lost * part for each, part in zip(batch, share, strict=True)]
        return {
            "test_accuracy": own,
            named("test_accuracy", c10.BATCH): batch,
            "epoch_train_loss": [0.5] * config.epochs,
        }

    return values


def test_supported_where_it_fails_and_is_repaired(synthetic: Synthetic, check_finding: Any) -> None:
    found = finding(c10.CLAIM, synthetic(c10.CLAIM, behind(0.08, 0.001)), data="invented")
    check_finding(c10.CLAIM, found)
    assert found.word == "supported"
    effects = [each.effect for each in found.comparisons]
    assert effects == pytest.approx([0.08, 0.079, 0.08], abs=0.005)


@pytest.mark.parametrize(
    ("cumulative", "others", "words"),
    [
        (0.001, 0.001, ["not supported", "not supported"]),  # nothing fails
        (0.08, 0.08, ["supported", "not supported"]),  # and nothing repairs it
        (-0.05, 0.0, ["not supported", "not supported"]),
    ],
)
def test_one_part_is_not_enough(
    synthetic: Synthetic, cumulative: float, others: float, words: list[str]
) -> None:
    evidence = synthetic(c10.CLAIM, behind(cumulative, others))
    found = finding(c10.CLAIM, evidence, data="invented")
    assert [each.word for each in found.comparisons[:2]] == words
    assert found.word == "not supported"


@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    values = behind(0.08, 0.001)
    evidence = synthetic(c10.CLAIM, lambda a, c: values(a, c) if c.seed < seeds else None)
    found = check_partial(c10.CLAIM, evidence, seeds)
    assert len(found.comparisons) == (0 if seeds < 2 else 3)


def test_the_source_stands_beside(synthetic: Synthetic) -> None:
    judgement = c10.judge(synthetic(c10.CLAIM, behind(0.08, 0.001)))
    table = judgement.tables[0]
    assert table.rows[-2][1:] == (12, 0.66, 0.74)
    assert table.rows[-1][1:] == (60, 0.40, None)
    assert table.rows[0][:2] == (c10.CUMULATIVE, 5)
    (chart,) = judgement.charts
    assert [line.arm for line in chart.lines] == [*c10.AVERAGES, c10.BATCH_ARM]


def test_it_is_no_part_of_the_demo_and_remembers_in_three_ways() -> None:
    assert not c10.CLAIM.demo
    arms = c10.plan("full", Available("full", 60_000, 10_000))
    assert all(config.epochs >= 12 for _, config in arms)
    assert {arm: dict(config.norm_options) for arm, config in arms} == {
        c10.CUMULATIVE: {"average": "cumulative"},
        c10.EXPONENTIAL: {"momentum": 0.05},
        c10.DEBIASED: {"average": "debiased", "momentum": 0.05},
    }
