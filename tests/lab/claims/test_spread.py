"""Spreads over the seeds, as C12 and C24 compare them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c12
from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study import WITH, WITHOUT
from normkit.lab.config import RunConfig
from normkit.lab.spreads import spread_ratios
from normkit.lab.verdicts import paired_test

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]


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


def test_a_seed_that_diverged_is_left_out(synthetic: Synthetic) -> None:
    values = spread({WITH: 0.04, WITHOUT: 0.004})

    def broken(arm: str, config: RunConfig) -> Values:
        found = dict(values(arm, config))
        if (arm, config.seed) == (WITHOUT, 3):
            found["test_loss"] = [None] * config.epochs
        return found

    evidence = synthetic(c12.CLAIM, broken)
    judgement = c12.CLAIM.judge(evidence)
    accuracy, loss = judgement.decides[0], judgement.information[0]
    assert accuracy is not None
    assert loss is not None
    assert (accuracy.seeds, loss.seeds) == (10, 9)
    # The invented test loss is one less the accuracy: nearly the same spread.
    assert loss.effect == pytest.approx(accuracy.effect, abs=0.5)


def test_two_equal_spreads_are_not_told_apart() -> None:
    """The mean of two epochs' pseudo-values keeps the 2.5 % of one, also where they go together."""
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(400):
        common = rng.normal(size=(2, 10))
        epochs = [common + 0.5 * rng.normal(size=(2, 10)) for _ in range(2)]
        columns = [spread_ratios(one, other) for one, other in epochs]
        verdict = paired_test("?", list(np.mean(columns, axis=0)), unit="", smallest=0.5)
        found += verdict is not None and verdict.word == "confirmed"
    assert found <= 20
