"""What C25 reads off its runs: factors along the gradient, and how far inputs move."""

from __future__ import annotations

import dataclasses
import math

import pytest

from normkit.lab.claims.claim import Available
from normkit.lab.claims.measures.landscape import FACTORS, RANGE, SHIFT
from normkit.lab.claims.registry import all_claims
from normkit.lab.runs import Run
from tests.lab.claims.invented import evidence

CLAIM = all_claims()["C25"]


@pytest.fixture
def run() -> Run:
    return evidence(CLAIM, "quick").runs[0]


def test_factors_are_geometric_means_and_pass_over_looks_that_tell_nothing(run: Run) -> None:
    points = ((1, 0, 2.0), (20, 0, None), (40, 0, 8.0), (60, 0, 0.0))
    run = dataclasses.replace(run, metrics={"landscape_range": points})
    assert RANGE.read(run) == pytest.approx(2)
    assert FACTORS[0].read(run) == pytest.approx(4)
    bare = dataclasses.replace(run, metrics={})
    assert RANGE.read(bare) is None and FACTORS[0].read(bare) is None


def test_shift_is_in_deviations_of_the_channel(run: Run) -> None:
    vectors = {
        # The second channel is constant at both looks, and says nothing.
        "channel1_mean": {1: (0.0, 5.0), 20: (3.0, 5.0), 40: (3.0, 5.0)},
        "channel1_std": {1: (1.0, 0.0), 20: (math.sqrt(3), 0.0), 40: (1.0, 0.0)},
        "channel2_mean": {1: (0.0,), 20: (0.5,), 40: (0.0,)},
        "channel2_std": {1: (1.0,), 20: (1.0,), 40: (1.0,)},
    }
    run = dataclasses.replace(run, vectors=vectors)
    moved = (3 / math.sqrt(2) + 0.5) / 2, (0 + 0.5) / 2
    assert SHIFT.curve(run) == [(20, pytest.approx(moved[0])), (40, pytest.approx(moved[1]))]
    assert SHIFT.read(run) == pytest.approx(sum(moved) / 2)
    assert SHIFT.read(dataclasses.replace(run, vectors={})) is None


def test_arms_differ_in_their_normalizer_alone() -> None:
    plan = CLAIM.plan("full", Available.whole(CLAIM.data))
    first = [config for _, config in plan if config.seed == 0 and config.model_options]
    assert {config.norm for config in first} == {"none", "batch", "noisy-batch", "noise"}
    assert len({dataclasses.replace(config, norm="none").key for config in first}) == 1
