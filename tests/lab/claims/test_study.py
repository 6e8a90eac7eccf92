"""The vocabulary of claims: gaps and few seeds, units, plans, and what a sentence may name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from normkit.errors import OptionError
from normkit.lab import setting_words
from normkit.lab.claims.claim import Available, Claim, Evidence
from normkit.lab.claims.registry import all_claims
from normkit.lab.claims.sources import IOFFE
from normkit.lab.claims.study import (
    ON_AND_OFF,
    TEST,
    TEST_LOSS,
    TRAIN,
    TRAIN_LOSS,
    WITH,
    WITHOUT,
    Dots,
    Endpoint,
    Plan,
    Scale,
    along,
    define,
    error,
    quarter,
    values_of,
)
from normkit.lab.config import RunConfig
from normkit.lab.findings import TOPICS, AtScale
from normkit.lab.judge import finding
from tests.lab.claims.invented import WORDS

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]
GAIN = TEST.at(WITH) - TEST.at(WITHOUT)
PLAN = Plan(
    scales={"quick": Scale(seeds=3, train=1_000, test=500, epochs=4)},
    arms=ON_AND_OFF,
    base={"model": "lenet5", "batch_size": 50, "lr": lambda at: 0.1 * at.train / 1_000},
)


def claim(plan: Any = PLAN, sentence: str = "Higher by {gain} points", **words: Any) -> Claim:
    return define(
        key="C0",
        title="A claim",
        statement="It holds.",
        sources=(IOFFE.says("no figures"),),
        prediction="It holds.",
        plan=plan,
        decides={"gain": Endpoint("How much higher?", GAIN, matters=1)},
        sentence=sentence,
        charts=(
            along(TEST, "Test accuracy", "test accuracy"),
            Dots("dots", "Gain", "arm", "gain", {"": {WITH: GAIN}}, difference=True),
        ),
        **(WORDS | words),
    )


def gained(arm: str, config: RunConfig) -> Values | None:
    """Five points with BN; the runs without BN of the seeds after the first are missing."""
    if config.seed and arm == WITHOUT:
        return None
    return {"test_accuracy": [0.5, 0.6, 0.7, 0.75 if arm == WITH else 0.7]}


def test_quarter_with_a_gap_is_not_known(synthetic: Synthetic) -> None:
    late, early = quarter(TEST, ""), quarter(TEST, "", late=False)
    values = {"test_accuracy": [0.5, 0.6, 0.7, None]}
    run = synthetic(claim(), lambda arm, config: values).runs[0]
    assert late.read(run) is None
    assert early.read(run) == 0.5


def test_training_without_a_finite_loss_counts_as_guessing(synthetic: Synthetic) -> None:
    values = {"epoch_train_loss": [1.0, None], "epoch_train_accuracy": [0.5, None]}
    run = synthetic(claim(), lambda arm, config: values).runs[0]
    assert TRAIN_LOSS.read(run) == pytest.approx(2.302585)
    assert TRAIN.read(run) == 0.1
    assert TEST.read(run) is None
    assert values_of([run], TEST) == []


def test_difference_of_shares_is_in_points() -> None:
    assert TEST.unit.name == error(TEST, "error").unit.name == "%"
    assert TRAIN.minus(TEST, "gap").unit.name == "points"
    assert TEST_LOSS.minus(TRAIN_LOSS, "gap").unit.name == "nats"


def test_single_pair_has_a_dot_without_whiskers(synthetic: Synthetic) -> None:
    found = finding(claim(), synthetic(claim(), gained), data="invented")
    assert found.comparisons == ()
    assert "No effect is known yet (1 of 3 seeds" in found.sentence
    curve, dots = found.charts
    assert dots.y_label == "gain, points"
    assert dots.lines[0].y == pytest.approx((5.0,))
    assert dots.lines[0].low == (None,)
    assert [line.note for line in curve.lines] == ["mean of 3", "mean of 1"]
    assert [line.y[-1] for line in curve.lines] == pytest.approx([75.0, 70.0])


def test_sentence_names_known_words_only() -> None:
    with pytest.raises(OptionError, match=r"sentence of C0; received loss\. Fix: use "):
        claim(sentence="Lower by {loss} nats")


def test_decision_says_what_matters() -> None:
    assert claim().decision.startswith("How much higher? (matters from 1 point) 95 %")


def test_trainings_drop_the_last_batch_unless_told() -> None:
    arms = {WITH: {}, WITHOUT: {"drop_last": False}, "timed": {"kind": "timing"}}
    base = {**PLAN.base, "norm": "batch"}
    runs = dataclasses.replace(PLAN, arms=arms, base=base)("quick", Available("subset", 500, 500))
    assert [config.drop_last for _, config in runs[:3]] == [True, False, False]


def test_plan_orders_seeds_settings_and_arms() -> None:
    plan = Plan(
        PLAN.scales,
        PLAN.arms,
        PLAN.base,
        presets={"quick": {"momentum": 0.9}},
        settings={"quick": [{"batch_size": 8}, {"batch_size": 4}]},
        seeds={WITHOUT: {"quick": 1}},
    )
    runs = plan("quick", Available("subset", 500, 500))
    assert [(c.seed, c.batch_size, arm) for arm, c in runs] == [
        (seed, batch_size, arm)
        for seed in range(3)
        for batch_size in (8, 4)
        for arm in (WITH, WITHOUT)
        if arm == WITH or seed < 1
    ]
    # A field that is a function gets the number of images that are there.
    assert {(c.lr, c.momentum, c.train_images, c.epochs) for _, c in runs} == {(0.05, 0.9, 500, 4)}


def test_arms_may_be_on_data_sets_of_the_same_files(synthetic: Synthetic) -> None:
    arms: dict[str, Mapping[str, Any]] = {
        WITH: ON_AND_OFF[WITH],
        WITHOUT: {"norm": "none", "data": "fashion-mnist-lit"},
    }
    both = claim(dataclasses.replace(PLAN, arms=arms))
    assert both.data_sets("quick") == ("fashion-mnist", "fashion-mnist-lit")
    runs = both.plan("quick", Available("subset", 500, 500))
    assert [config.data for _, config in runs[:2]] == list(both.data_sets("quick"))
    assert {config.edition for _, config in runs} == {"subset"}
    found = finding(both, synthetic(both, lambda arm, config: None), data="invented")
    assert found.data == "invented: 1,000 training and 500 test images"
    assert ("data sets", "Fashion-MNIST; Fashion-MNIST, lit") in found.setup
    with pytest.raises(OptionError, match=r"same files as cifar-10; received 'fashion-mnist-lit'"):
        both.plan("quick", Available.whole("cifar-10"))


def test_numbers_of_images_that_differ_are_a_range(synthetic: Synthetic) -> None:
    few = dataclasses.replace(
        PLAN, arms={**ON_AND_OFF, "few": {"norm": "none", "train_images": 250}}
    )
    found = finding(claim(few), synthetic(claim(few), lambda arm, config: None), data="invented")
    assert found.data == "invented: 250–1,000 training and 500 test images"


def test_here_stands_beside_the_source(synthetic: Synthetic) -> None:
    setup = {"network": "LeNet", "data": "MNIST", "steps": "many", "figures": "+2"}
    told = claim(
        source_setup=setup,
        figures="{gain:plain} points",
        holds="At {gain:plain} it holds.",
        practice="Use it.",
        at_scale=[AtScale("agrees", "+3", "a paper")],
    )
    values = {"test_accuracy": [0.5, 0.6, 0.7, 0.7]}
    found = finding(told, synthetic(told, lambda arm, config: values), data="")
    assert found.here is not None
    assert found.here.columns == ("", "here", "in the source")
    assert found.here.rows == (
        ("network", "LeNet-5, 62,000 parameters", "LeNet"),
        ("data", "Fashion-MNIST, 1,000 training and 500 test images, 28 pixels", "MNIST"),
        ("steps", "80 steps of 50 images, 4 epochs", "many"),
        ("figures", "0.00 points", "+2"),
    )
    assert (found.holds, found.practice) == ("At 0.00 it holds.", "Use it.")
    assert found.at_scale == (AtScale("agrees", "+3", "a paper"),)


@pytest.mark.parametrize(
    "wrong", [{"holds": "{gian}"}, {"practice": "{gian}"}, {"figures": "{gian}"}]
)
def test_templates_name_what_there_is(wrong: dict[str, str]) -> None:
    with pytest.raises(OptionError, match="gian"):
        claim(**wrong)


def test_settings_are_in_words(synthetic: Synthetic) -> None:
    arms = {
        "small": {"norm": "ghost", "norm_options": (("ghost_size", 2),), "optimizer": "adam"},
        "none": {"norm": "none", "model_options": (("pool", "avg"), ("padding", 0))},
    }
    both = claim(dataclasses.replace(PLAN, arms=arms))
    setup = dict(finding(both, synthetic(both, lambda arm, config: None), data="").setup)
    assert setup["network"] == "LeNet-5"
    assert setup["its options"] == "average pooling; no padding"
    assert setup["normalizer by arm"] == (
        "batch normalization in ghost batches: 2 images normalized together (small); none (none)"
    )
    assert (setup["optimizer"], setup["momentum"]) == ("Adam, SGD", "none")
    # No name of a setting reaches a reader as the code has it.
    every = [one for each in all_claims().values() for one in runs_of(each)]
    assert {config.norm for config in every} <= setting_words.NORMS.keys()
    assert {config.optimizer for config in every} <= setting_words.OPTIMIZERS.keys()
    assert {config.act for config in every} <= setting_words.ACTIVATIONS.keys()
    options = {pair for config in every for pair in (*config.model_options, *config.norm_options)}
    assert not [pair for pair in options if "_" in setting_words.option(*pair)]


def runs_of(claim: Claim) -> list[RunConfig]:
    whole = Available.whole(claim.data)
    return [config for preset in claim.presets for _, config in claim.plan(preset, whole)]


def test_topic_is_one_of_those_readers_filter_by() -> None:
    assert {each.topic for each in all_claims().values()} == set(TOPICS)
    with pytest.raises(OptionError, match=r"topic of C0 among training.*'magic'.*Fix: choose"):
        claim(topic="magic")


@pytest.mark.parametrize("setup", [{}, {"network": "LeNet"}, dict.fromkeys("abcd", "")])
def test_source_setup_has_four_rows(setup: dict[str, str]) -> None:
    with pytest.raises(OptionError, match="network, data, steps, figures"):
        claim(source_setup=setup)
