"""C12 on invented runs: spreads that differ early, late or never."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c01, c12
from normkit.lab.claims.claim import PRESETS, Available, Evidence, Preset
from normkit.lab.claims.parts import WITH, WITHOUT
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]
FULL = Available("full", 60_000, 10_000)


def spread(early: Mapping[str, float], late: float = 0.003) -> Any:
    """Scores that rise, with this standard deviation over the seeds in the first two epochs."""

    def values(arm: str, config: RunConfig) -> Values:
        rng = np.random.default_rng([config.seed, len(arm)])
        drawn = rng.normal(0, 1, config.epochs)
        scale = [early[arm] if epoch < 2 else late for epoch in range(config.epochs)]
        accuracy = [
            round(0.7 + 0.03 * epoch + float(z) * s, 4)
            for epoch, (z, s) in enumerate(zip(drawn, scale, strict=True))
        ]
        return {
            "test_accuracy": accuracy,
            "test_loss": [1 - each for each in accuracy],
            "epoch_train_loss": [1 - each + 0.01 * float(rng.normal()) for each in accuracy],
        }

    return values


@pytest.mark.parametrize(
    ("early", "word"),
    [
        ({WITH: 0.04, WITHOUT: 0.004}, "supported"),
        ({WITH: 0.004, WITHOUT: 0.04}, "not supported"),
        ({WITH: 0.01, WITHOUT: 0.01}, "undecided"),
    ],
)
def test_words(
    synthetic: Synthetic, check_finding: Any, early: Mapping[str, float], word: str
) -> None:
    found = finding(c12.CLAIM, synthetic(c12.CLAIM, spread(early)), data="invented")
    check_finding(c12.CLAIM, found)
    assert found.word == word
    decides, loss, _, late = found.comparisons
    assert decides.effect == pytest.approx(np.log2(early[WITH] / early[WITHOUT]), abs=1)
    # The invented test loss is one less the accuracy: the same spread.
    assert loss.effect == pytest.approx(decides.effect, abs=0.01)
    assert abs(late.effect) < 1.5
    assert decides.seeds == 10


def test_a_spread_that_differs_late_only_is_not_the_claims(synthetic: Synthetic) -> None:
    def values(arm: str, config: RunConfig) -> Values:
        late = 0.05 if arm == WITH else 0.002
        return spread({WITH: 0.002, WITHOUT: 0.02}, late)(arm, config)

    found = finding(c12.CLAIM, synthetic(c12.CLAIM, values), data="invented")
    assert found.word == "not supported"
    assert found.comparisons[3].low > 0


@pytest.mark.parametrize("seeds", [0, 1, 2, 4])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    values = spread({WITH: 0.04, WITHOUT: 0.004})
    evidence = synthetic(c12.CLAIM, lambda a, c: values(a, c) if c.seed < seeds else None)
    found = check_partial(c12.CLAIM, evidence, seeds)
    assert len(found.comparisons) == (4 if seeds > 2 else 0)  # a ratio of spreads needs three


def test_a_seed_that_diverged_is_left_out(synthetic: Synthetic) -> None:
    values = spread({WITH: 0.04, WITHOUT: 0.004})

    def broken(arm: str, config: RunConfig) -> Values:
        found = dict(values(arm, config))
        if (arm, config.seed) == (WITHOUT, 3):
            found["test_loss"] = [None] * config.epochs
        return found

    evidence = synthetic(c12.CLAIM, broken)
    assert len(c12.doublings(evidence, "test_loss", c12.EARLY)) == 9
    assert len(c12.doublings(evidence, "test_accuracy", c12.EARLY)) == 10


def test_two_equal_spreads_are_not_told_apart() -> None:
    """The mean of two epochs' pseudo-values keeps the 2.5 % of one, also where they go together."""
    from normkit.lab.verdicts import paired_test, spread_ratios

    rng = np.random.default_rng(5)
    found = 0
    for _ in range(400):
        common = rng.normal(size=(2, 10))
        epochs = [common + 0.5 * rng.normal(size=(2, 10)) for _ in c12.EARLY]
        columns = [spread_ratios(one, other) for one, other in epochs]
        verdict = paired_test("?", list(np.mean(columns, axis=0)), unit="", smallest=c12.SMALLEST)
        found += verdict is not None and verdict.word == "supported"
    assert found <= 20


def test_every_seed_lies_in_the_band(synthetic: Synthetic) -> None:
    evidence = synthetic(c12.CLAIM, spread({WITH: 0.04, WITHOUT: 0.004}))
    judgement = c12.judge(evidence)
    band, deviations = judgement.charts
    for line in band.lines:
        first = [run.by_epoch("test_accuracy")[0] for run in evidence.of(line.arm)]
        assert (line.low[0], line.high[0]) == (min(first), max(first))
        deviation = next(each for each in deviations.lines if each.arm == line.arm)
        assert deviation.y[0] == pytest.approx(100 * np.std(first, ddof=1))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_runs_are_c1s_and_more_seeds(preset: Preset) -> None:
    ours, theirs = (claim.plan(preset, FULL) for claim in (c12, c01))
    assert set(theirs) <= set(ours)
    assert {config.seed for _, config in ours} == set(range(max(10, len(theirs) // 2)))
    assert len(ours) == len(set(ours)) == 2 * len({config.seed for _, config in ours})
    assert not c12.CLAIM.demo
