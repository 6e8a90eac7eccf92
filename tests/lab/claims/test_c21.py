"""C21: a broken run counts as guessing, and paper is the source's own plan for CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from normkit.lab.claims.c21 import CLAIM
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.claims.measures.depths import PLAIN
from normkit.lab.config import RunConfig


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


def test_paper_is_the_sources_plan() -> None:
    arms = CLAIM.plan("paper", Available("full", 50_000, 10_000, data="cifar-10", side=32))
    assert {config.model for _, config in arms} == {f"resnet{n}" for n in (20, 32, 44, 56)}
    config = arms[0][1]
    assert (config.data, config.size, config.train_images) == ("cifar-10", 32, 50_000)
    assert dict(config.model_options) == {"residual": False}
    # 64,000 steps of 128 images, a tenth of the rate from 32,000 on and from 48,000.
    assert (config.batch_size, config.lr, config.schedule) == (128, 0.1, "step")
    assert config.steps == pytest.approx(64_000, rel=0.01)
