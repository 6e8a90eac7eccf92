"""C21 on invented runs: errors that rise with depth, and those that do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c21
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]
FULL = Available("full", 60_000, 10_000)


def rising(plain: float, residual: float, noise: float = 0.0005) -> Any:
    """How much higher each arm's training error is at 34 layers than at 18; the test's, half."""

    def values(arm: str, config: RunConfig) -> Values:
        deep = config.model == "resnet34"
        rng = np.random.default_rng([config.seed, len(arm), deep])
        rise = (plain if arm == c21.PLAIN else residual) * deep
        error = 0.1 + rise + rng.normal(0, noise)
        test = 0.2 + rise / 2 + rng.normal(0, noise)
        return {
            "epoch_train_accuracy": [1 - error] * config.epochs,
            "test_accuracy": [1 - test] * config.epochs,
        }

    return values


def test_supported_where_only_the_plain_one_gets_worse(
    synthetic: Synthetic, check_finding: Any
) -> None:
    found = finding(c21.CLAIM, synthetic(c21.CLAIM, rising(0.1, -0.02)), data="invented")
    check_finding(c21.CLAIM, found)
    assert found.word == "supported"
    effects = [each.effect for each in found.comparisons]
    assert effects == pytest.approx([0.1, 0.12, 0.03, 0.06], abs=0.002)
    assert [each.decides for each in found.comparisons] == [True, True, True, False]
    assert "rises by +9.9 [" in found.sentence


@pytest.mark.parametrize(
    ("plain", "residual", "words"),
    [
        (0.0, 0.0, ["not supported", "not supported", "supported"]),  # depth does nothing
        (0.1, 0.1, ["supported", "not supported", "not supported"]),  # shortcuts do nothing
        (0.1, 0.05, ["supported", "supported", "not supported"]),  # they help, not enough
        (-0.05, -0.1, ["not supported", "supported", "supported"]),  # depth helps both
    ],
)
def test_one_part_is_not_enough(
    synthetic: Synthetic, plain: float, residual: float, words: list[str]
) -> None:
    found = finding(c21.CLAIM, synthetic(c21.CLAIM, rising(plain, residual)), data="invented")
    assert [each.word for each in found.comparisons[:3]] == words
    assert found.word == "not supported"


def test_noise_decides_nothing(synthetic: Synthetic) -> None:
    evidence = synthetic(c21.CLAIM, rising(0.02, 0.0, noise=0.05))
    found = finding(c21.CLAIM, evidence, data="invented")
    assert found.word == "undecided"
    assert found.comparisons[0].low < 0.02 < found.comparisons[0].high


def test_a_broken_run_counts_as_guessing(synthetic: Synthetic) -> None:
    values = rising(0.0, 0.0)

    def broken(arm: str, config: RunConfig) -> Values:
        if arm == c21.PLAIN and config.model == "resnet34":
            nothing = [None] * config.epochs
            return {"epoch_train_accuracy": nothing, "test_accuracy": [0.1] * config.epochs}
        return values(arm, config)

    judgement = c21.judge(synthetic(c21.CLAIM, broken))
    assert judgement.decides[0] is not None
    assert judgement.decides[0].effect == pytest.approx(0.8, abs=0.002)


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    values = rising(0.1, -0.02)
    evidence = synthetic(c21.CLAIM, lambda a, c: values(a, c) if c.seed < seeds else None)
    found = check_partial(c21.CLAIM, evidence, seeds)
    assert len(found.comparisons) == (0 if seeds < 2 else 4)


def test_what_is_drawn_and_printed(synthetic: Synthetic) -> None:
    judgement = c21.judge(synthetic(c21.CLAIM, rising(0.1, -0.02)))
    by_depth, by_epoch = judgement.charts
    plain, residual = by_depth.lines
    assert (plain.arm, residual.arm) == (c21.PLAIN, c21.RESIDUAL)
    assert plain.x == (18, 34)
    assert plain.y == pytest.approx((10, 20), abs=0.1)
    assert "plain +9.9 points, residual -1.9" in by_depth.title
    assert len(by_epoch.lines) == 4
    assert by_epoch.lines[0].y[-1] == pytest.approx(10, abs=0.1)
    rows = judgement.tables[0].rows
    assert ("plain", 34, "ImageNet, published", 28.54) in rows
    assert ("residual", 34, "ImageNet, published", 25.03) in rows
    ours = [row for row in rows if row[:3] == ("plain", 34, "training, ours")]
    assert ours[0][3] == pytest.approx(20, abs=0.1)


def test_plans_pair_all_depths_with_and_without_shortcuts() -> None:
    arms = c21.plan("full", FULL)
    assert {config.seed for _, config in arms} == set(range(5))
    assert len(arms) == 5 * 2 * 2
    for arm, config in arms:
        assert dict(config.model_options)["residual"] == (arm == c21.RESIDUAL)
    without = {(c.seed, c.model, c.lr, c.epochs) for arm, c in arms if arm == c21.PLAIN}
    assert without == {(c.seed, c.model, c.lr, c.epochs) for arm, c in arms if arm == c21.RESIDUAL}


def test_paper_is_the_sources() -> None:
    cifar = Available("full", 50_000, 10_000, data="cifar-10", side=32)
    arms = c21.plan("paper", cifar)
    assert {c21.depth_of(config) for _, config in arms} == {20, 32, 44, 56}
    config = arms[0][1]
    assert (config.data, config.size, config.train_images) == ("cifar-10", 32, 50_000)
    # 64,000 steps of 128 images, a tenth of the rate from 32,000 on and from 48,000.
    assert (config.batch_size, config.lr, config.schedule) == (128, 0.1, "step")
    assert config.steps == pytest.approx(64_000, rel=0.01)
    assert "width" not in dict(config.model_options)
