"""C10: growth of the gap since it was smallest, without the low luck of a smallest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from normkit.lab.claims import c10
from normkit.lab.claims.c10 import CUMULATIVE, GAP, OF_BATCH
from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.measures.growth import since_least
from normkit.lab.conditions import named

Synthetic = Callable[..., Evidence]


def gaps(synthetic: Synthetic, mean: list[float], spread: float, draw: int) -> list[float]:
    def values(arm: str, config: object) -> dict[str, list[float]]:
        seed = getattr(config, "seed", 0)
        noise = np.random.default_rng([seed, draw]).normal(0, spread, len(mean))
        gap = np.asarray(mean) + noise * (arm == CUMULATIVE)
        return {
            "test_accuracy": [0.7] * len(mean),
            named("test_accuracy", OF_BATCH): list(0.7 + gap),
            "epoch_train_loss": [1.0] * len(mean),
        }

    return list(since_least(CUMULATIVE, GAP).by_seed(synthetic(c10.CLAIM, values)).values())


def test_growth_is_from_the_smallest_gap(synthetic: Synthetic) -> None:
    grown = gaps(synthetic, [0.2, 0.02, 0.05, 0.1, 0.15], 0.0, 0)
    assert grown == pytest.approx([0.13] * 5)


def test_equal_gaps_do_not_grow_by_chance(synthetic: Synthetic) -> None:
    # The last gap less the smallest of five is 1.2 deviations above zero on average.
    grown = [np.mean(gaps(synthetic, [0.1] * 5, 0.02, draw)) for draw in range(40)]
    assert abs(np.mean(grown)) < 2.5 * np.std(grown) / 40**0.5
