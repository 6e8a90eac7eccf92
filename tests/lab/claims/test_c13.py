"""C13: its runs are C1's and those with BN in one place; a small gain is shown, not assumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from normkit.lab.claims import c01, c13
from normkit.lab.claims.claim import Available, Evidence, Preset
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

FULL = Available("full", 60_000, 10_000)


@pytest.mark.parametrize(
    ("both", "spread", "part", "word"),
    [
        (0.002, 0.0005, "confirmed", "confirmed"),
        (-0.02, 0.0005, "confirmed", "confirmed"),  # a loss is little
        (0.03, 0.0005, "opposite", "partly"),
        (0.0, 0.05, "open", "partly"),  # an interval that holds zero, and ten points besides
    ],
)
def test_little_is_shown_by_an_interval_within_the_margin(
    synthetic: Callable[..., Evidence], both: float, spread: float, part: str, word: str
) -> None:
    gains = {c13.NONE: 0.0, c13.CONV: 0.3, c13.FC: 0.01, c13.BOTH: 0.3 + both}

    def values(arm: str, config: RunConfig) -> Mapping[str, Sequence[float]]:
        rng = np.random.default_rng([config.seed, list(gains).index(arm)])
        score = 0.5 + gains[arm] + rng.normal(0, spread)
        names = ("test_accuracy", *(named("test_accuracy", each) for each in config.evaluations))
        return {name: [score] * config.epochs for name in names} | {"epoch_train_loss": [1 - score]}

    found = finding(c13.CLAIM, synthetic(c13.CLAIM, values), data="invented")
    helps, little = found.comparisons[:2]
    assert helps.word == "confirmed"
    assert (little.word, found.word) == (part, word)
    assert little.effect == pytest.approx(-100 * both, abs=0.1 if spread < 0.01 else 10)


@pytest.mark.parametrize("preset", c13.CLAIM.presets)
def test_c1_s_runs_are_two_of_the_arms(preset: Preset) -> None:
    shared = {config.key for _, config in c01.PLAN(preset, FULL)}
    for arm, config in c13.CLAIM.plan(preset, FULL):
        assert (config.key in shared) == (arm in (c13.NONE, c13.BOTH)), arm
        # Nothing but the place is another.
        assert dataclasses.replace(config, model_options=()).key in shared
