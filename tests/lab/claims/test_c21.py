"""C21: errors by depth decide, broken runs count as guessing, paper is the source's own plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from normkit.lab.claims.c21 import CLAIM
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.claims.measures.depths import PLAIN
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

SMALL = "too small to matter"


def test_a_broken_run_counts_as_guessing(synthetic: Callable[..., Evidence]) -> None:
    def values(arm: str, config: RunConfig) -> Mapping[str, Sequence[float | None]]:
        if arm == PLAIN and config.model == "resnet34":
            nothing = [None] * config.epochs
            return {"epoch_train_accuracy": nothing, "test_accuracy": [0.1] * config.epochs}
        error = 0.1 + np.random.default_rng([config.seed, len(arm)]).normal(0, 0.0005)
        return {"epoch_train_accuracy": [1 - error], "test_accuracy": [0.8] * config.epochs}

    rises = CLAIM.judge(synthetic(CLAIM, values)).decides[0]
    assert rises is not None
    assert rises.effect == pytest.approx(80, abs=0.2)


@pytest.mark.parametrize(
    ("plain", "residual", "words"),
    [
        (0.1, -0.02, ["confirmed", "confirmed", "confirmed"]),
        (0.0, 0.0, [SMALL, SMALL, "confirmed"]),  # depth does nothing
        (0.1, 0.1, ["confirmed", SMALL, "opposite"]),  # shortcuts do nothing
        (0.1, 0.05, ["confirmed", "confirmed", "opposite"]),  # they help, not enough
    ],
)
def test_errors_by_depth_decide(
    synthetic: Callable[..., Evidence], plain: float, residual: float, words: list[str]
) -> None:
    def values(arm: str, config: RunConfig) -> Mapping[str, Sequence[float]]:
        deep = config.model == "resnet34"
        rng = np.random.default_rng([config.seed, len(arm), deep])
        rise = (plain if arm == PLAIN else residual) * deep
        found = {"epoch_train_accuracy": 0.9 - rise, "test_accuracy": 0.8 - rise / 2}
        return {name: [each + rng.normal(0, 5e-4)] * config.epochs for name, each in found.items()}

    found = finding(CLAIM, synthetic(CLAIM, values), data="invented")
    assert [each.word for each in found.comparisons[:3]] == words
    effects = [each.effect for each in found.comparisons]
    expected = [plain, plain - residual, -residual, (plain - residual) / 2]
    assert effects == pytest.approx([100 * each for each in expected], abs=0.2)


def test_paper_is_the_sources_plan() -> None:
    arms = CLAIM.plan("paper", Available("full", 50_000, 10_000, data="cifar-10", side=32))
    assert {config.model for _, config in arms} == {f"resnet{n}" for n in (20, 32, 44, 56)}
    config = arms[0][1]
    assert (config.data, config.size, config.train_images) == ("cifar-10", 32, 50_000)
    assert dict(config.model_options) == {"residual": False}
    # 64,000 steps of 128 images, a tenth of the rate from 32,000 on and from 48,000.
    assert (config.batch_size, config.lr, config.schedule) == (128, 0.1, "step")
    assert config.steps == pytest.approx(64_000, rel=0.01)
