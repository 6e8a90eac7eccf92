"""C7 on invented runs: training losses that γ and β lower, or do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c07
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]
FULL = Available("full", 60_000, 10_000)


def losses(sigmoid: float = 0.03, relu: float = 0.03, noise: float = 0.002) -> Any:
    """By how much γ and β lower the loss of the last epoch; accuracy goes the other way."""

    def values(arm: str, config: RunConfig) -> Values:
        rng = np.random.default_rng([config.seed, len(arm)])
        bare = config.model_options == (("affine", False),)
        more = {"sigmoid": sigmoid, "relu": relu}[config.act] if bare else 0.0
        last = 0.3 + more + float(rng.normal(0, noise))
        return {
            "epoch_train_loss": [2.0] * (config.epochs - 1) + [last],
            "epoch_train_accuracy": [0.9] * config.epochs,
            "test_accuracy": [0.8 + (0.02 if bare else 0.0)] * config.epochs,
            "activation1_std": [1.0 if bare else 1.2] * config.epochs,
            "activation2_std": [1.0 if bare else 1.4] * config.epochs,
        }

    return values


def test_supported_where_both_parts_hold(synthetic: Synthetic, check_finding: Any) -> None:
    found = finding(c07.CLAIM, synthetic(c07.CLAIM, losses()), data="invented")
    check_finding(c07.CLAIM, found)
    assert found.word == "supported"
    effects = [each.effect for each in found.comparisons]
    # Test accuracy speaks against it here, and decides nothing.
    assert effects == pytest.approx([0.03, 0.03, -0.02, -0.02, 0.3], abs=0.004)


@pytest.mark.parametrize(
    ("given", "words", "word"),
    [
        ((0.03, 0.0, 0.002), ["supported", "not supported"], "not supported"),
        ((0.0, 0.03, 0.002), ["not supported", "supported"], "not supported"),
        ((0.03, -0.03, 0.002), ["supported", "not supported"], "not supported"),
        ((0.005, 0.03, 0.0005), ["not supported", "supported"], "not supported"),  # too little
        ((0.03, 0.03, 0.2), ["undecided", "undecided"], "undecided"),
    ],
)
def test_one_part_is_not_enough(
    synthetic: Synthetic, given: tuple[float, float, float], words: list[str], word: str
) -> None:
    found = finding(c07.CLAIM, synthetic(c07.CLAIM, losses(*given)), data="invented")
    assert [each.word for each in found.comparisons[:2]] == words
    assert found.word == word


@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    values = losses()
    evidence = synthetic(c07.CLAIM, lambda a, c: values(a, c) if c.seed < seeds else None)
    found = check_partial(c07.CLAIM, evidence, seeds)
    assert len(found.comparisons) == (0 if seeds < 2 else 5)


def test_full_asks_what_normalising_takes(synthetic: Synthetic) -> None:
    claim = dataclasses.replace(c07.CLAIM, plan=lambda _, available: c07.plan("full", available))
    found = finding(claim, synthetic(claim, losses(relu=0.05)), data="invented")
    assert found.word == "supported"
    assert [each.seeds for each in found.comparisons] == [6] * 6
    assert found.comparisons[-1].effect == pytest.approx(0.05, abs=0.005)


def test_each_activation_has_its_chart(synthetic: Synthetic) -> None:
    judgement = c07.judge(synthetic(c07.CLAIM, losses()))
    assert [chart.key for chart in judgement.charts] == ["loss-sigmoid", "loss-relu"]
    for chart, act in zip(judgement.charts, c07.RATES, strict=True):
        assert [line.arm for line in chart.lines] == [f"{act}, γ and β", f"{act}, no γ, no β"]
        assert chart.lines[1].y[-1] - chart.lines[0].y[-1] == pytest.approx(0.03, abs=0.004)
    rows = {row[0]: row[1:] for row in judgement.tables[0].rows}
    assert rows["sigmoid, no γ, no β"][1:] == (0.9, 0.82, 1.0)
    assert rows["ReLU, γ and β"][1:] == (0.9, 0.8, 1.3)


@pytest.mark.parametrize("preset", ["quick", "full", "paper"])
def test_the_plan(preset: Any) -> None:
    arms = c07.plan(preset, FULL)
    seeds = c07.SCALES[preset].seeds
    forms = {arm: (c.act, c.norm, c.model_options) for arm, c in arms}
    bare = (("affine", False),)
    expected = {
        "sigmoid, γ and β": ("sigmoid", "batch", ()),
        "sigmoid, no γ, no β": ("sigmoid", "batch", bare),
        "ReLU, γ and β": ("relu", "batch", ()),
        "ReLU, no γ, no β": ("relu", "batch", bare),
    }
    if preset != "quick":
        expected["ReLU, no BN"] = ("relu", "none", ())
    assert forms == expected
    assert len(arms) == seeds * len(expected)
    assert seeds >= 5
    assert len({(c.act, c.lr, c.momentum, c.schedule, c.epochs) for _, c in arms}) == 2
    for _, config in arms:
        assert config.steps % config.probes[0][1] == 0
