"""C22 on invented runs: accuracies near each other and apart, parameters counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from normkit.lab.building import build_model
from normkit.lab.claims import c22
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]
FULL = Available("full", 60_000, 10_000)


def above(dense: float, *, cut: float = -0.05, noise: float = 0.0005, memory: float = 0.0) -> Any:
    """How far DenseNet and the cut ResNet are above ResNet-18's 0.85.

    ``memory`` is what the moving average costs DenseNet.
    """
    means = {c22.RESNET: 0.85, c22.DENSENET: 0.85 + dense, c22.CUT: 0.85 + cut}

    def values(arm: str, config: RunConfig) -> Values:
        score = means[arm] + np.random.default_rng([config.seed, len(arm)]).normal(0, noise)
        lost = memory if arm == c22.DENSENET else 0.0
        return {
            "test_accuracy": [score - lost] * config.epochs,
            named("test_accuracy", config.final_evaluations[0]): [score] * config.epochs,
            "epoch_train_accuracy": [0.9] * config.epochs,
            "epoch_seconds": [9.0] + [2.0 if arm == c22.RESNET else 3.0] * (config.epochs - 1),
        }

    return values


def test_supported_where_it_reaches(synthetic: Synthetic, check_finding: Any) -> None:
    found = finding(c22.CLAIM, synthetic(c22.CLAIM, above(-0.003, memory=0.1)), data="invented")
    check_finding(c22.CLAIM, found)
    assert found.word == "supported"
    reaches, fewer, gap, remembered, cut = (each.effect for each in found.comparisons)
    assert (reaches, gap, cut) == pytest.approx((0.007, -0.003, 0.047), abs=0.001)
    # What the moving average loses decides nothing, and is shown.
    assert remembered == pytest.approx(-0.103, abs=0.001)
    assert fewer == pytest.approx(1 - 12_844 / 176_258)
    assert [each.decides for each in found.comparisons] == [True, True, False, False, False]
    assert "12,844 parameters against 176,258" in found.sentence
    assert "takes 1.5 times" in found.sentence  # the median: the first epoch is slower


@pytest.mark.parametrize(
    ("dense", "noise", "word"),
    [
        (-0.02, 0.0005, "not supported"),  # two points below
        (0.02, 0.0005, "supported"),
        (-0.005, 0.05, "undecided"),
    ],
)
def test_words(synthetic: Synthetic, dense: float, noise: float, word: str) -> None:
    evidence = synthetic(c22.CLAIM, above(dense, noise=noise))
    found = finding(c22.CLAIM, evidence, data="invented")
    assert found.word == word
    assert found.comparisons[1].word == "supported"


def test_it_needs_fewer_parameters(synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    # The same accuracies, and a DenseNet that is no smaller than its ResNet.
    monkeypatch.setitem(c22.SMALL, c22.DENSENET, ("densenet", (("growth", 16), ("stem", 32))))
    found = finding(c22.CLAIM, synthetic(c22.CLAIM, above(0.02)), data="invented")
    assert [each.word for each in found.comparisons[:2]] == ["supported", "not supported"]
    assert found.word == "not supported"


@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    values = above(-0.003)
    evidence = synthetic(c22.CLAIM, lambda a, c: values(a, c) if c.seed < seeds else None)
    found = check_partial(c22.CLAIM, evidence, seeds)
    assert len(found.comparisons) == (0 if seeds < 2 else 5)


def test_parameters_are_those_of_the_model_that_is_trained() -> None:
    state = torch.get_rng_state()
    arms = dict(c22.plan("quick", FULL))
    for config in arms.values():
        model = build_model(config, in_channels=1, classes=10)
        assert c22.parameters(config) == sum(p.numel() for p in model.parameters())
    torch.set_rng_state(state)
    c22.parameters(arms[c22.RESNET])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("preset", ["quick", "full", "paper"])
def test_widths_keep_the_sources_ratio(preset: Any) -> None:
    counts = {arm: c22.parameters(config) for arm, config in c22.plan(preset, FULL)}
    assert counts[c22.RESNET] / counts[c22.DENSENET] == pytest.approx(14.8, rel=0.1)
    # The third arm is ResNet-18 with about DenseNet's parameters.
    assert counts[c22.CUT] == pytest.approx(counts[c22.DENSENET], rel=0.15)


def test_paper_is_the_sources() -> None:
    arms = dict(c22.plan("paper", FULL))
    assert c22.parameters(arms[c22.RESNET]) == pytest.approx(11.17e6, rel=0.01)
    assert c22.parameters(arms[c22.DENSENET]) == pytest.approx(0.76e6, rel=0.01)
    for arm, config in arms.items():
        assert (config.size, config.batch_size, config.epochs) == (96, 256, 10)
        assert (config.lr, config.schedule) == (c22.RATES[arm], "constant")
        assert config.final_evaluations == (("population", 10_000, 256),)


def test_what_is_drawn_and_printed(synthetic: Synthetic) -> None:
    judgement = c22.judge(synthetic(c22.CLAIM, above(-0.003)))
    chart = judgement.charts[0]
    assert chart.rows == (
        "ResNet-18, publ.: 11,175,370",
        "DenseNet, publ.: 757,322",
        "ResNet-18: 176,258",
        "DenseNet: 12,844",
        "ResNet-18, cut: 11,384",
    )
    places = {chart.rows[int(line.x[0])]: line for line in chart.lines}
    assert places["DenseNet: 12,844"].y == (pytest.approx(0.847, abs=0.001),)
    assert places["ResNet-18: 176,258"].arm == c22.RESNET
    published = [line.y for line in chart.lines if line.role == "published"]
    assert published == [(0.913,), (0.882,)]
    rows = {row[0]: row[1:] for row in judgement.tables[0].rows}
    assert rows["DenseNet, published (median)"][2] == 0.882
    ours = rows["ResNet-18, ours"]
    assert ours[0] == 176_258
    assert ours[3] == pytest.approx(1000 * 2.0 / c22.SCALES["quick"].train, abs=0.01)
