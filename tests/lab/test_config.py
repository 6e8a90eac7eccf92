from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest

from normkit.errors import OptionError, StoreError, TypeMismatchError
from normkit.lab.config import RunConfig

Make = Callable[..., RunConfig]
FIXED = RunConfig(
    model="lenet5",
    norm="batch",
    lr=0.1,
    train_images=20_000,
    test_images=10_000,
    batch_size=256,
    epochs=5,
    seed=3,
)


def test_key_of_a_known_run_never_changes() -> None:
    # If this fails, every store in the world trains everything again. A new field with a default
    # must not do that; a new meaning of an old field must raise FORMAT and this value.
    assert FIXED.to_json() == (
        '{"batch_size":256,"epochs":5,"lr":0.1,"model":"lenet5","norm":"batch","seed":3,'
        '"test_images":10000,"train_images":20000}'
    )
    assert FIXED.key == "3227e58e4c0f1a82a37f1e4398f3d6fc66828bf5c295e391561bc5068bb27ccc"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"norm": "none"},
        {"lr": 0.2},
        {"edition": "subset"},
        {"momentum": 0.9},
        {"probes": (("activations", 5),)},
        {"model_options": (("dropout", 0.5),)},
        {"norm_options": (("momentum", 0.05),)},
        {"schedule": "cosine"},
        {"frozen_epochs": 1},
        {"evaluations": (("batch", 100),)},
        {"composition": (("group", 32), ("labels", 2))},
        {"domains": "negatives"},
        {"final_evaluations": (("population", 1000, 100),)},
        {"task": "denoising", "noise": 0.1},
        {"drop_last": True},
    ],
)
def test_whatever_changes_the_numbers_changes_the_key(change: dict[str, object]) -> None:
    assert dataclasses.replace(FIXED, **change).key != FIXED.key  # type: ignore[arg-type]


def test_noise_changes_the_key() -> None:
    run = dataclasses.replace(FIXED, task="denoising", noise=0.1)
    assert dataclasses.replace(run, noise=0.2).key != run.key
    assert RunConfig.from_json(run.to_json()) == run


def test_json_comes_back_the_same(make_config: Make) -> None:
    run = make_config(
        probes=(("activations", 3),),
        model_options=(("pool", "avg"),),
        composition=(("group", 32), ("labels", 2), ("mixed", True)),
        norm_options=(("momentum", 0.05), ("average", "debiased")),
        evaluations=(("batch", 50),),
        final_evaluations=(("population", 100, 20), ("batch", 50)),
        momentum=0.9,
        drop_last=True,
    )
    again = RunConfig.from_json(run.to_json())
    assert again == run
    assert again.key == run.key


def test_conditions_by_epoch(make_config: Make) -> None:
    run = make_config(
        evaluations=(("batch", 50),), final_evaluations=(("population", 100, 20), ("batch", 50))
    )
    assert run.conditions(0) == (("batch", 50),)
    assert run.conditions(1) == (("batch", 50), ("population", 100, 20))


@pytest.mark.parametrize(
    ("batch_size", "kept", "dropped", "images"),
    [(64, 4, 4, 256), (100, 3, 2, 200), (256, 1, 1, 256)],
)
def test_dropped_batch_is_no_step(
    make_config: Make, batch_size: int, kept: int, dropped: int, images: int
) -> None:
    run = make_config(batch_size=batch_size)
    assert (run.steps_per_epoch, run.images) == (kept, 2 * 256)
    run = dataclasses.replace(run, drop_last=True)
    assert (run.steps_per_epoch, run.images, run.steps) == (dropped, 2 * images, 2 * dropped)


def test_fields_of_a_newer_version_are_refused() -> None:
    text = json.dumps(json.loads(FIXED.to_json()) | {"gravity": 9.81})
    with pytest.raises(StoreError, match=r"gravity.*the normkit that made it"):
        RunConfig.from_json(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"lr": float("nan")},
        {"epochs": 0},
        {"batch_size": 0},
        {"drop_last": 1},
        {"drop_last": True, "batch_size": 257},  # of 256 images
        {"drop_last": True, "kind": "timing"},
        {"optimizer": "magic"},
        {"edition": "pocket"},
        {"kind": "magic"},
        {"seed": -1},
        {"batch_size": 64.0},
        {"epochs": True},
        {"momentum": float("nan")},
        {"weight_decay": -0.1},
        {"optimizer": "adam", "momentum": 0.9},
        {"lr": "0.1"},
        {"probes": (("activations", 0),)},
        {"schedule": "magic"},
        {"frozen_epochs": -1},
        {"frozen_epochs": 2},  # of two epochs
        {"frozen_epochs": 1, "evaluations": (("batch", 50),)},
        {"composition": (("group", 32),)},
        {"composition": (("group", 32), ("labels", 2), ("colour", 1))},
        {"composition": (("group", 32), ("labels", 3))},
        {"composition": (("group", 32.5), ("labels", 2))},
        {"composition": (("group", 32), ("labels", 2), ("mixed", "no"))},
        {"composition": (("group", 32), ("group", 16), ("labels", 2))},
        {"domains": "moon"},
        {"evaluations": (("domains-shared", 100, 50),)},  # of a run without domains
        {"domains": "negatives", "evaluations": (("batch", 50),)},
        {"evaluations": (("composed", 32, 3),)},
        {"evaluations": ((),)},
        {"evaluations": (("telepathy", 5),)},
        {"evaluations": (("batch",),)},
        {"evaluations": (("batch", 0),)},
        {"evaluations": (("batch", 1),)},
        {"evaluations": (("batch", 2.5),)},
        {"evaluations": (("batch", 99),)},  # of 100 test images one would be left
        {"evaluations": (("population", 100),)},
        {"evaluations": (("train",),)},
        {"evaluations": (("train", 257),)},  # of 256
        {"evaluations": (("population", 257, 64),)},  # the run has 256 training images
        {"final_evaluations": (("population", 101, 50),)},
        {"task": "magic"},
        {"task": "denoising"},
        {"noise": 0.1},
        {"task": "denoising", "noise": -0.1},
        {"task": "denoising", "noise": float("inf")},
        {"task": "denoising", "noise": 0.1, "domains": "negatives"},
        {"task": "denoising", "noise": 0.1, "composition": (("group", 32), ("labels", 2))},
        {"task": "denoising", "noise": 0.1, "final_evaluations": (("batch", 50),)},
    ],
)
def test_values_no_training_can_use_are_refused(
    make_config: Make, wrong: dict[str, object]
) -> None:
    with pytest.raises((OptionError, TypeMismatchError), match="Fix"):
        make_config(**wrong)
