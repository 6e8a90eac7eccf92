"""C11 on invented runs: changes that gain, lose or do nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.building import build_model
from normkit.lab.claims import c11
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]
FULL = Available("full", 60_000, 10_000)


def gains(small: float, started: float, noise: float = 0.001) -> Any:
    """How much each change gains; with the statistics remembered all is alike."""

    def values(arm: str, config: RunConfig) -> Values:
        rng = np.random.default_rng([config.seed, len(arm)])
        gain = {c11.SMALL_EPS: small, c11.STARTED: started}.get(arm, 0.0)
        seed = 0.01 * config.seed
        accuracy = [
            0.7 + 0.05 * epoch + seed + gain + float(rng.normal(0, noise))
            for epoch in range(config.epochs)
        ]
        return {
            named("test_accuracy", c11.BATCH): accuracy,
            "test_accuracy": [0.6 + seed] * config.epochs,
            "epoch_train_loss": [0.5] * config.epochs,
        }

    return values


def test_supported_where_both_gain(synthetic: Synthetic, check_finding: Any) -> None:
    found = finding(c11.CLAIM, synthetic(c11.CLAIM, gains(0.02, 0.01)), data="invented")
    check_finding(c11.CLAIM, found)
    assert found.word == "supported"
    assert [each.effect for each in found.comparisons[:2]] == pytest.approx([0.02, 0.01], abs=0.002)
    # With the statistics remembered nothing was gained, and that decides nothing.
    assert [each.effect for each in found.comparisons[2:]] == pytest.approx([0, 0], abs=1e-9)
    assert not found.differs


@pytest.mark.parametrize(
    ("small", "started", "noise", "words"),
    [
        (0.0, 0.0, 0.001, ["not supported", "not supported"]),  # noise
        (0.02, 0.0, 0.001, ["supported", "not supported"]),
        (0.0, 0.02, 0.001, ["not supported", "supported"]),
        (0.0, 0.0, 0.02, ["undecided", "undecided"]),  # more noise than five seeds can tell
    ],
)
def test_one_gain_is_not_enough(
    synthetic: Synthetic, small: float, started: float, noise: float, words: list[str]
) -> None:
    evidence = synthetic(c11.CLAIM, gains(small, started, noise))
    found = finding(c11.CLAIM, evidence, data="invented")
    assert [each.word for each in found.comparisons[:2]] == words
    assert found.word == ("not supported" if "not supported" in words else "undecided")
    assert "noise" in found.differs


@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    values = gains(0.02, 0.01)
    evidence = synthetic(c11.CLAIM, lambda a, c: values(a, c) if c.seed < seeds else None)
    found = check_partial(c11.CLAIM, evidence, seeds)
    assert len(found.comparisons) == (0 if seeds < 2 else 4)


def test_full_has_more_arms_that_decide_nothing(synthetic: Synthetic) -> None:
    claim = dataclasses.replace(c11.CLAIM, plan=lambda _, available: c11.plan("full", available))
    found = finding(claim, synthetic(claim, gains(0.02, 0.01)), data="invented")
    assert found.word == "supported"
    assert [each.seeds for each in found.comparisons] == [10, 10, 10, 10, 5, 5]
    (chart,) = found.charts
    assert len(chart.rows) == 4
    assert [line.x for line in chart.lines] == [(0, 1, 2, 3)] * 2
    usual = {config.model_options for arm, config in c11.plan("full", FULL) if arm == c11.USUAL}
    assert usual == {(("init", "pytorch"),)}


def test_gains_are_drawn_in_points(synthetic: Synthetic) -> None:
    judgement = c11.judge(synthetic(c11.CLAIM, gains(0.02, 0.0)))
    (chart,) = judgement.charts
    assert chart.rows == (c11.SMALL_EPS, c11.STARTED)
    by_batch, by_memory = chart.lines
    for place, comparison in enumerate(judgement.decides):
        assert by_batch.y[place] == pytest.approx(100 * comparison.effect)
        assert by_batch.low[place] == pytest.approx(100 * comparison.low)
        assert by_batch.high[place] == pytest.approx(100 * comparison.high)
    assert by_memory.y == pytest.approx((0.0, 0.0))


def test_arms_differ_in_what_they_say_alone() -> None:
    arms = {arm: config for arm, config in c11.plan("full", FULL) if config.seed == 0}
    layers = {}
    for arm, config in arms.items():
        model = build_model(config, in_channels=1, classes=10)
        layers[arm] = {name: getattr(model, name) for name in ("norm1", "norm2", "norm3", "norm4")}
        assert dict(config.norm_options)["momentum"] == 0.05
        assert config.size == 28
    for arm, named_layers in layers.items():
        for layer in named_layers.values():
            wanted = {c11.LARGE_EPS: 1e-3, c11.SMALL_EPS: 1e-10, c11.USUAL_SMALL: 1e-10}
            assert layer.eps == wanted.get(arm, 1e-5)
            started = arm == c11.STARTED
            assert (layer.weight == (1 + 2**-23 if started else 1)).all()
            assert bool(layer.bias.any()) == started


def test_with_cifar_the_images_have_their_own_size() -> None:
    available = Available("full", 50_000, 10_000, data="cifar-10", side=32)
    assert {(c.data, c.size) for _, c in c11.plan("paper", available)} == {("cifar-10", 32)}
    assert c11.CLAIM.also == ("cifar-10",)
    assert not c11.CLAIM.demo
