"""C13 on invented runs: what each place of BN gains is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c01, c13
from normkit.lab.claims.claim import PRESETS, Available, Evidence
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]
FULL = Available("full", 60_000, 10_000)
BASE = 0.8


def gains(conv: float, both: float, spread: float = 0.0005) -> Any:
    """What conv gains over none, and both over conv."""
    of = {c13.NONE: 0.0, c13.CONV: conv, c13.FC: 0.01, c13.BOTH: conv + both}

    def values(arm: str, config: RunConfig) -> Values:
        rng = np.random.default_rng([config.seed, list(of).index(arm)])
        score = BASE + of[arm] + rng.normal(0, spread)
        # The mean over the epochs is the score; the last epoch is above it.
        rise = [0.01 * (epoch - (config.epochs - 1) / 2) for epoch in range(config.epochs)]
        return {
            "test_accuracy": [score + each for each in rise],
            "epoch_train_loss": [1 - score] * config.epochs,
        }

    return values


def test_supported_where_it_helps_and_adds_little(synthetic: Synthetic, check_finding: Any) -> None:
    found = finding(c13.CLAIM, synthetic(c13.CLAIM, gains(0.03, 0.002)), data="invented")
    check_finding(c13.CLAIM, found)
    assert found.word == "supported"
    effects = [each.effect for each in found.comparisons]
    # conv, one point less the gain, the gain, fc alone, the last epoch, the loss.
    assert effects == pytest.approx([0.03, 0.008, 0.002, 0.01, 0.002, 0.002], abs=0.0015)


@pytest.mark.parametrize(
    ("conv", "both", "words"),
    [
        (0.03, 0.03, ["supported", "not supported"]),  # adds a lot
        (0.001, 0.001, ["not supported", "supported"]),  # there is nothing to add to
        (-0.03, 0.03, ["not supported", "not supported"]),
        (0.03, -0.02, ["supported", "supported"]),  # a loss is little
    ],
)
def test_each_part_counts(synthetic: Synthetic, conv: float, both: float, words: list[str]) -> None:
    found = finding(c13.CLAIM, synthetic(c13.CLAIM, gains(conv, both)), data="invented")
    assert [each.word for each in found.comparisons[:2]] == words
    assert found.word == ("supported" if set(words) == {"supported"} else "not supported")


def test_a_gain_of_nothing_that_is_known_badly_is_no_small_gain(synthetic: Synthetic) -> None:
    # An interval that holds zero, and ten points besides.
    evidence = synthetic(c13.CLAIM, gains(0.5, 0.0, spread=0.05))
    found = finding(c13.CLAIM, evidence, data="invented")
    assert [each.word for each in found.comparisons[:2]] == ["supported", "undecided"]
    assert found.word == "undecided"


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    values = gains(0.03, 0.002)
    evidence = synthetic(c13.CLAIM, lambda a, c: values(a, c) if c.seed < seeds else None)
    found = check_partial(c13.CLAIM, evidence, seeds)
    assert len(found.comparisons) == (0 if seeds < 2 else 6)


def test_the_places_and_the_source_stand_side_by_side(synthetic: Synthetic) -> None:
    judgement = c13.judge(synthetic(c13.CLAIM, gains(0.03, 0.002)))
    places, epochs = judgement.charts
    ours, published = places.lines
    assert places.rows == tuple(c13.ARMS.values())
    assert ours.y == pytest.approx([80, 83, 81, 83.2], abs=0.15)
    assert dict(zip(published.x, published.y, strict=True)) == pytest.approx({0: 87.564, 3: 89.822})
    assert [line.arm for line in epochs.lines] == list(c13.ARMS)
    assert [row[-1] for row in judgement.tables[0].rows] == [87.56, None, None, 89.82]


@pytest.mark.parametrize("preset", PRESETS)
def test_c1_s_runs_are_two_of_the_arms(preset: Any) -> None:
    arms = c13.plan(preset, FULL)
    shared = {config.key for _, config in c01.PLAN(preset, FULL)}
    for arm, config in arms:
        assert (config.key in shared) == (arm in (c13.NONE, c13.BOTH)), arm
        if arm in (c13.CONV, c13.FC):
            assert config.model_options == (("norm_at", arm),)
            # Nothing but the place is another.
            assert dataclasses.replace(config, model_options=()).key in shared
    assert len({config.seed for _, config in arms}) >= (3 if preset == "quick" else 5)
    assert not c13.CLAIM.demo
