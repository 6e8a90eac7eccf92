"""C4 on invented runs: an arm that generalises better, and one that merely learns more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c04
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.claims.overfitting import DROPOUT, ONLY_BN
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]


def scores(bn: tuple[float, float], dropout: tuple[float, float], spread: float = 0.001) -> Any:
    """Each arm's (training, test) accuracy."""

    def values(arm: str, config: RunConfig) -> Values:
        rng = np.random.default_rng([config.seed, len(arm)])
        train, test = bn if arm == ONLY_BN else dropout
        (condition,) = config.evaluations
        return {
            "test_accuracy": [test + rng.normal(0, spread)] * config.epochs,
            "test_loss": [1.0] * config.epochs,
            named("test_accuracy", condition): [train] * config.epochs,
            named("test_loss", condition): [0.1] * config.epochs,
        }

    return values


PLAIN = (0.97, 0.75)


def test_supported_where_both_parts_hold(synthetic: Synthetic, check_finding: Any) -> None:
    evidence = synthetic(c04.CLAIM, scores((1.0, 0.80), PLAIN))
    found = finding(c04.CLAIM, evidence, data="invented")
    check_finding(c04.CLAIM, found)
    assert found.word == "supported"
    effects = [each.effect for each in found.comparisons]
    assert effects == pytest.approx([0.05, 0.02, 0.03], abs=0.003)
    assert "BN 1.000, dropout 0.970" in found.sentence


@pytest.mark.parametrize(
    ("bn", "words"),
    [
        ((1.0, 0.75), ["not supported", "not supported"]),  # learns more, scores the same
        ((1.0, 0.77), ["supported", "not supported"]),  # scores more by learning more
        ((0.90, 0.73), ["not supported", "supported"]),  # a narrow gap for want of learning
    ],
)
def test_one_part_is_not_enough(
    synthetic: Synthetic, bn: tuple[float, float], words: list[str]
) -> None:
    found = finding(c04.CLAIM, synthetic(c04.CLAIM, scores(bn, PLAIN)), data="invented")
    assert [each.word for each in found.comparisons[:2]] == words
    assert found.word == "not supported"


def test_noise_leaves_it_undecided(synthetic: Synthetic) -> None:
    evidence = synthetic(c04.CLAIM, scores((1.0, 0.80), PLAIN, spread=0.1))
    assert finding(c04.CLAIM, evidence, data="invented").word == "undecided"


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    values = scores((1.0, 0.80), PLAIN)
    evidence = synthetic(c04.CLAIM, lambda a, c: values(a, c) if c.seed < seeds else None)
    found = check_partial(c04.CLAIM, evidence, seeds)
    assert len(found.comparisons) == (0 if seeds < 2 else 3)


def test_the_source_s_arms_on_the_source_s_data_too() -> None:
    assert not c04.CLAIM.demo
    assert c04.CLAIM.also == ("cifar-100",)
    arms = c04.plan("full", Available("full", 60_000, 10_000))
    assert {arm: (c.norm, dict(c.model_options)["dropout"]) for arm, c in arms} == {
        DROPOUT: ("none", 0.5),
        ONLY_BN: ("batch", 0.0),
    }
    assert len({config.seed for _, config in arms}) >= 5
