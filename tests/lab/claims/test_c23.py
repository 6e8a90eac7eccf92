"""C23 on invented runs: PSNR that half instance normalization raises, or does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c23
from normkit.lab.claims.claim import PRESETS, Available, Evidence
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding
from normkit.lab.models import OUTPUTS, build

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]
FULL = Available("full", 60_000, 10_000)
SPREAD = 0.02


def levels(gain: float, instance: float = -1.0) -> Any:
    """PSNR that rises to a level: 26 dB and what the arm adds to it."""
    added = {c23.NONE: 0.0, c23.HALF: gain, c23.IN: instance, c23.BN: -0.3}

    def values(arm: str, config: RunConfig) -> Values:
        rng = np.random.default_rng([config.seed, len(arm)])
        last = 26 + added[arm] + float(rng.normal(0, SPREAD))
        rising = [last - 0.5 * (config.epochs - 1 - epoch) for epoch in range(config.epochs)]
        found = {
            "test_psnr": rising,
            "test_loss": [0.5 - each for each in rising],
            "epoch_train_psnr": [each - 1 for each in rising],
            "epoch_train_loss": [1 - each for each in rising],
        }
        for condition in config.final_evaluations:
            found[named("test_psnr", condition)] = [each + 0.2 for each in rising]
        return found

    return values


def test_supported_where_the_gain_matters(synthetic: Synthetic, check_finding: Any) -> None:
    found = finding(c23.CLAIM, synthetic(c23.CLAIM, levels(0.4)), data="invented")
    check_finding(c23.CLAIM, found)
    assert found.word == "supported"
    assert [each.decides for each in found.comparisons] == [True, False, False, False]
    effects = [each.effect for each in found.comparisons]
    assert effects[:3] == pytest.approx([0.4, 1.4, 0.7], abs=0.05)
    assert effects[3] == pytest.approx(0.2)
    assert [each.seeds for each in found.comparisons] == [5] * 4


@pytest.mark.parametrize(
    ("gain", "instance", "word"),
    [
        (0.03, -1.0, "not supported"),  # surely above zero, and too small to matter
        (0.4, 0.9, "supported"),  # IN is better still: it does not decide
        (-0.4, -1.0, "not supported"),  # better than IN: that does not either
    ],
)
def test_the_gain_over_no_normalizer_decides(
    synthetic: Synthetic, gain: float, instance: float, word: str
) -> None:
    found = finding(c23.CLAIM, synthetic(c23.CLAIM, levels(gain, instance)), data="invented")
    assert found.word == word
    assert found.differs == ("" if word == "supported" else c23.CLAIM.differs)


def test_seeds_that_disagree_decide_nothing(synthetic: Synthetic) -> None:
    def values(arm: str, config: RunConfig) -> Values:
        return levels(0.4 if config.seed % 2 else -0.3)(arm, config)

    assert finding(c23.CLAIM, synthetic(c23.CLAIM, values), data="invented").word == "undecided"


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    values = levels(0.4)
    evidence = synthetic(c23.CLAIM, lambda a, c: values(a, c) if c.seed < seeds else None)
    found = check_partial(c23.CLAIM, evidence, seeds)
    assert len(found.comparisons) == (0 if seeds < 2 else 4)
    assert [chart.key for chart in found.charts] == [[], ["epochs"], ["gains", "epochs"]][seeds]


def test_charts_and_table_show_what_was_measured(synthetic: Synthetic) -> None:
    evidence = synthetic(c23.CLAIM, levels(0.4))
    judgement = c23.judge(evidence)
    gains, epochs = judgement.charts
    assert [line.arm for line in epochs.lines] == [c23.NONE, c23.IN, c23.BN, c23.HALF]
    assert gains.rows == (c23.HALF, c23.IN, c23.BN)
    assert [line.y[0] for line in gains.lines] == pytest.approx([0.4, -1.0, -0.3], abs=0.05)
    assert gains.lines[0].y[0] == judgement.decides[0].effect
    table = judgement.tables[0]
    rows = {row[0]: row for row in table.rows}
    last = [run.last("test_psnr") for run in evidence.of(c23.HALF)]
    assert rows[c23.HALF][1:4] == (5, round(fmean(last), 2), round(stdev(last), 3))
    assert rows[c23.BN][5] == pytest.approx(rows[c23.BN][2] + 0.2)
    assert rows[c23.NONE][5] is None
    # The noisy image: 10 log10(1 / 0.1²).
    assert rows["the noisy image itself, not clipped"][2] == 20
    assert {row[2] for name, row in rows.items() if "published" in str(name)} == {39.99, 32.71}


def test_records_tell_psnr(synthetic: Synthetic) -> None:
    found = finding(c23.CLAIM, synthetic(c23.CLAIM, levels(0.4)), data="invented")
    record = next(each for each in found.records if each["arm"] == c23.BN)
    assert len(record["test_psnr"]) == record["epochs"]
    assert "test_accuracy" not in record
    assert any(name.startswith("test_psnr@population") for name in record)
    assert dict(found.setup)["task"] == "denoising, noise 0.1"


@pytest.mark.parametrize("preset", PRESETS)
def test_the_plan_is_paired(preset: Any) -> None:
    arms = c23.plan(preset, FULL)
    assert len(arms) == 4 * {"quick": 5, "full": 5, "paper": 5}[preset]
    assert [arm for arm, _ in arms[:4]] == [c23.NONE, c23.IN, c23.BN, c23.HALF]
    for arm, config in arms:
        assert config.norm == c23.NORMS[arm]
        # But for normalizer, seed and extra evaluation all are alike.
        same = dataclasses.replace(config, norm="none", seed=0, final_evaluations=())
        assert same == arms[0][1]
        assert bool(config.final_evaluations) == (arm == c23.BN)
    config = arms[0][1]
    assert (config.task, config.noise, config.optimizer) == ("denoising", 0.1, "adam")
    assert OUTPUTS[config.model] == "images"
    build(config.model, act=config.act, size=config.size, **dict(config.model_options))  # type: ignore[arg-type]


def test_paper_is_the_sources_scale() -> None:
    config = c23.plan("paper", FULL)[0][1]
    assert config.steps == pytest.approx(400_000, rel=0.01)
    assert (config.batch_size, config.lr, config.train_images) == (64, 2e-4, 60_000)
    assert dict(config.model_options) == {"width": 64, "depth": 3}


def test_a_small_edition_will_do() -> None:
    config = dict(c23.plan("full", Available("subset", 200, 100)))[c23.BN]
    assert (config.train_images, config.test_images) == (200, 100)
    assert config.final_evaluations == (("population", 200, 200),)
