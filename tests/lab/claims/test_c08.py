"""C8, and its runs that C4 shares, on invented runs whose gap and test accuracy are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c04, c08, overfitting
from normkit.lab.claims.claim import PRESETS, Available, Evidence
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]
FULL = Available("full", 60_000, 10_000)


def ends_at(late: Mapping[str, tuple[float, float]], spread: float = 0.001) -> Any:
    """Each arm's late (training, test) accuracy; before the last quarter all arms are alike."""

    def values(arm: str, config: RunConfig) -> Values:
        rng = np.random.default_rng([config.seed, len(arm)])
        train, test = late[arm]
        quarter = config.epochs // 4
        begin = config.epochs - quarter
        tested = [0.5] * begin + [test + rng.normal(0, spread)] * quarter
        trained = [0.6] * begin + [train] * quarter
        (condition,) = config.evaluations
        return {
            "test_accuracy": tested,
            "test_loss": [2 - each for each in tested],
            named("test_accuracy", condition): trained,
            named("test_loss", condition): [1.1 - each for each in trained],
            # What was seen while training, dropout on, must not count.
            "epoch_train_accuracy": [0.1] * config.epochs,
            "epoch_train_loss": [1.0] * config.epochs,
        }

    return values


HOLDS = {
    overfitting.NEITHER: (1.0, 0.74),
    overfitting.ONLY_BN: (1.0, 0.78),
    overfitting.DROPOUT: (0.99, 0.76),
    overfitting.BOTH: (0.99, 0.80),
}


def test_supported_where_both_parts_hold(synthetic: Synthetic, check_finding: Any) -> None:
    found = finding(c08.CLAIM, synthetic(c08.CLAIM, ends_at(HOLDS)), data="invented")
    check_finding(c08.CLAIM, found)
    assert found.word == "supported"
    effects = [each.effect for each in found.comparisons]
    # Gap, test accuracy late, early (alike), BN's gap narrowed, its test loss lowered.
    assert effects == pytest.approx([0.04, 0.02, 0.0, 0.03, 0.02], abs=0.003)
    assert [each.decides for each in found.comparisons] == [True, True, False, False, False]
    # What has not learned has no gap either: who reads it must see that all arms did.
    assert "training accuracy is: neither 1.0" in found.sentence


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        # BN overfits as much as neither does.
        ({overfitting.NEITHER: (1.0, 0.79)}, ["not supported", "supported"]),
        # Dropout adds nothing to BN.
        ({overfitting.BOTH: (0.99, 0.778)}, ["supported", "not supported"]),
        # It narrows the gap by learning less only: that is no help.
        ({overfitting.BOTH: (0.85, 0.75)}, ["supported", "not supported"]),
    ],
)
def test_one_part_is_not_enough(
    synthetic: Synthetic, changed: Mapping[str, tuple[float, float]], words: list[str]
) -> None:
    evidence = synthetic(c08.CLAIM, ends_at(HOLDS | changed))
    found = finding(c08.CLAIM, evidence, data="invented")
    assert [each.word for each in found.comparisons[:2]] == words
    assert found.word == "not supported"


def test_noise_leaves_it_undecided(synthetic: Synthetic) -> None:
    evidence = synthetic(c08.CLAIM, ends_at(HOLDS, spread=0.05))
    assert finding(c08.CLAIM, evidence, data="invented").word == "undecided"


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    values = ends_at(HOLDS)
    evidence = synthetic(c08.CLAIM, lambda a, c: values(a, c) if c.seed < seeds else None)
    found = check_partial(c08.CLAIM, evidence, seeds)
    assert len(found.comparisons) == (0 if seeds < 2 else 5)


def test_a_run_without_a_late_value_is_left_out(synthetic: Synthetic) -> None:
    def values(arm: str, config: RunConfig) -> Values:
        found = dict(ends_at(HOLDS)(arm, config))
        if config.seed == 0:
            found["test_loss"] = [*found["test_loss"][:-1], None]
        return found

    evidence = synthetic(c08.CLAIM, values)
    run, *others = evidence.of(overfitting.ONLY_BN)
    late = overfitting.late(overfitting.tested_loss)
    assert late(run) is None
    assert all(late(other) is not None for other in others)
    assert overfitting.late(overfitting.gap)(run) is not None


def test_what_is_seen_late_and_over_time(synthetic: Synthetic) -> None:
    judgement = c08.judge(synthetic(c08.CLAIM, ends_at(HOLDS)))
    assert [chart.key for chart in judgement.charts] == ["gap", "test", "loss"]
    epochs = overfitting.SCALES["quick"].epochs
    for chart in judgement.charts:
        assert [line.arm for line in chart.lines] == list(overfitting.ARMS)
        assert all(line.x == tuple(range(1, epochs + 1)) for line in chart.lines)
    line = judgement.charts[0].lines[0]
    assert (line.y[0], line.y[-1]) == pytest.approx((0.1, 0.26), abs=0.003)
    table = judgement.tables[0]
    assert table.rows[1][:4] == (overfitting.ONLY_BN, 100.0, pytest.approx(78, abs=0.3),
                                 pytest.approx(22, abs=0.3))  # fmt: skip
    assert [row[1:4] for row in table.rows[-2:]] == [(97.3, 40.0, 57.3), (99.9, 58.0, 41.9)]


@pytest.mark.parametrize("preset", PRESETS)
def test_four_arms_that_differ_in_two_things(preset: Any) -> None:
    arms = c08.CLAIM.plan(preset, FULL)
    seeds = 3 if preset == "quick" else 5
    assert len(arms) == 4 * seeds
    assert {arm: (c.norm, dict(c.model_options)["dropout"]) for arm, c in arms} == overfitting.ARMS
    alike = {
        (config.seed, config.lr, config.epochs, config.train_images, config.batch_size)
        for _, config in arms
    }
    assert len(alike) == seeds
    # C4's runs are among them.
    keys = {config.key for _, config in arms}
    assert {config.key for _, config in c04.plan(preset, FULL)} < keys


def test_the_source_s_scale_and_data() -> None:
    cifar = Available("full", 50_000, 10_000, data="cifar-100", side=32, classes=100)
    (_, run), *_ = c04.plan("paper", cifar)
    assert (run.data, run.size, run.train_images, run.epochs) == ("cifar-100", 32, 50_000, 100)
    assert not {"hidden", "width"} & set(dict(run.model_options))
    (_, run), *_ = c04.plan("full", cifar)
    assert run.train_images == 5_000
    # The shipped subset has as many images as are asked for, or fewer.
    (_, run), *_ = c04.plan("full", Available("subset", 600, 500))
    assert run.evaluations == (("train", 600),)


def test_bn_that_never_learned_leaves_the_claim_open(synthetic: Synthetic) -> None:
    evidence = synthetic(c08.CLAIM, ends_at(HOLDS))
    broken = tuple(
        dataclasses.replace(each, run=dataclasses.replace(each.run, status="diverged"))
        if each.arm == overfitting.ONLY_BN
        else each
        for each in evidence.planned
    )
    found = finding(c08.CLAIM, dataclasses.replace(evidence, planned=broken), data="invented")
    assert found.word == "undecided"
    assert not found.stale  # nothing decides, and yet the plan is of this version
