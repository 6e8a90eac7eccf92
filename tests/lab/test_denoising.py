"""Runs that learn to take noise off images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from normkit.cli.lab_progress import describe
from normkit.errors import OptionError
from normkit.lab import data, denoising
from normkit.lab.building import build_model, build_optimizer
from normkit.lab.config import RunConfig
from normkit.lab.evaluations import chance_score, evaluate, evaluate_under
from normkit.lab.store import Store
from normkit.lab.tasks import task_of
from normkit.lab.training import train

Make = Callable[..., RunConfig]
STEPS = 8
POPULATION = ("population", 128, 32)


@pytest.fixture
def make(make_config: Make) -> Make:
    """A tiny denoiser; arguments change single fields."""

    def fields(**changed: Any) -> RunConfig:
        values: dict[str, Any] = {
            "model": "denoiser",
            "model_options": (("width", 4),),
            "norm": "half-instance",
            "act": "leaky_relu_0.2",
            "task": "denoising",
            "noise": 0.2,
            "optimizer": "adam",
            "lr": 0.01,
        }
        return make_config(**(values | changed))

    return fields


def stop_after(steps: int) -> Callable[[], bool]:
    asked = iter([False] * (steps - 1))
    return lambda: next(asked, True)


def test_epoch_and_step_metrics(make: Make, dataset: data.Dataset, make_log: Any) -> None:
    log = make_log()
    config = make(epochs=3)
    outcome = train(config, dataset, log)
    assert (outcome.step, outcome.diverged_step, outcome.stopped) == (12, None, False)
    names = {name for name, _ in log.metrics}
    assert names == {"train_loss", "epoch_train_loss", "epoch_train_psnr", "test_psnr", "test_loss"}
    # The loss is less PSNR, but not clipped: the figure is the better one of the two.
    for step in (4, 8, 12):
        assert log.metrics["test_psnr", step] > -log.metrics["test_loss", step]
        assert log.metrics["epoch_train_psnr", step] > -log.metrics["epoch_train_loss", step]
    small = dataclasses.replace(dataset, test=dataset.test.take(100, seed=0))
    assert log.metrics["test_psnr", 12] > chance_score(small, config).figure + 1


def test_one_epoch_by_hand(make: Make, dataset: data.Dataset, make_log: Any) -> None:
    config = make(epochs=1)
    log = make_log()
    train(config, dataset, log)
    split = dataset.train.take(256, seed=0)
    model = build_model(config, in_channels=1, classes=10).train()
    optimizer = build_optimizer(config, model)
    total = 0.0
    for noisy, clean in task_of(config).batches(config, split, 64, seed=0, epoch=0):
        optimizer.zero_grad()
        errors = (model(noisy) - clean).square().mean((1, 2, 3)) + 1e-8
        loss = (10 * errors.log10()).mean()
        loss.backward()
        optimizer.step()
        total += loss.item() / 4
    assert log.metrics["epoch_train_loss", 4] == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(
    ("stop", "norm"), [(1, "half-instance"), (3, "batch"), (4, "half-instance"), (6, "batch")]
)
def test_stopped_run_resumes_bit_for_bit(
    make: Make, dataset: data.Dataset, make_log: Any, stop: int, norm: str
) -> None:
    population = (POPULATION,) if norm == "batch" else ()
    config = make(norm=norm, loss_every=3, evaluations=population)
    whole, parts = make_log(), make_log()
    train(config, dataset, whole)
    outcome = train(config, dataset, parts, stopping=stop_after(stop))
    assert outcome.stopped
    assert parts.checkpoints[-1][0] == outcome.step < STEPS
    torch.manual_seed(12345)  # whatever happened to the generator in between
    outcome = train(config, dataset, parts, resume=parts.checkpoints[-1][1])
    assert outcome.step == STEPS
    assert parts.metrics == whole.metrics


def test_exploding_denoiser_counts_as_noisy_image(
    make: Make, dataset: data.Dataset, make_log: Any
) -> None:
    log = make_log()
    config = make(norm="none", optimizer="sgd", lr=1e30)
    outcome = train(config, dataset, log)
    assert outcome.diverged_step is not None
    assert outcome.diverged_step <= 4
    small = dataclasses.replace(dataset, test=dataset.test.take(100, seed=0))
    assert log.metrics["test_psnr", 8] == chance_score(small, config).figure
    assert log.metrics["epoch_train_psnr", 8] is None
    assert log.metrics["test_loss", 8] is None


def test_run_at_chance_level_is_a_result(make: Make, dataset: data.Dataset, make_log: Any) -> None:
    log = make_log()
    outcome = train(make(norm="none", optimizer="sgd", lr=1e-12), dataset, log)
    assert (outcome.diverged_step, outcome.step) == (0, STEPS)
    assert math.isfinite(log.metrics["test_psnr", STEPS])


def test_population_statistics_are_those_of_noisy_images(make: Make, dataset: data.Dataset) -> None:
    small = dataclasses.replace(
        dataset, train=dataset.train.take(128, seed=0), test=dataset.test.take(100, seed=0)
    )
    config = make(norm="batch", train_images=128)
    model = build_model(config, in_channels=1, classes=10).train()
    found, _ = evaluate_under([("population", 128, 128)], model, small, config, 0)
    # All images in one batch: what a layer that forgets all but its last batch remembers.
    other = build_model(config, in_channels=1, classes=10).train()
    for layer in other.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    noisy, _ = next(task_of(config).batches(config, small.train, 128, seed=0, epoch=config.epochs))
    with torch.no_grad():
        other(noisy)
    psnr, loss, *_ = evaluate(other, small.test, config)
    assert found["test_psnr@population-128-128"] == pytest.approx(psnr, rel=1e-5)
    assert found["test_loss@population-128-128"] == pytest.approx(loss, rel=1e-5)
    assert psnr != pytest.approx(evaluate(model, small.test, config).figure, abs=0.01)


@pytest.mark.parametrize(
    "wrong", [{"model": "lenet5", "model_options": ()}, {"task": "classification", "noise": 0.0}]
)
def test_model_must_give_what_the_task_needs(
    make: Make, dataset: data.Dataset, make_log: Any, wrong: dict[str, Any]
) -> None:
    with pytest.raises(OptionError, match="a model that outputs"):
        train(make(**wrong), dataset, make_log())


def test_describe_run_in_one_line(
    make: Make, make_config: Make, store: Store, write_run: Any
) -> None:
    for config, metrics, words in (
        (make(), {"test_psnr": [20.0, 27.123]}, "test PSNR 27.12 dB"),
        (make(seed=1), {"epoch_train_loss": [1.0, 1.0]}, "no test psnr"),
        (make_config(), {"test_accuracy": [0.1, 0.81234]}, "test accuracy 0.8123"),
    ):
        store.plan("C0", "quick", [("arm", config)])
        write_run(store, config, metrics)
        (planned,) = store.planned("C0", "quick")
        assert words in describe(planned.run)


def test_noise_spread_gives_each_image_a_deviation_of_its_own() -> None:
    clean, labels = torch.zeros(2000, 1, 16, 16), torch.zeros(2000)
    even, varied = (
        next(denoising.noisy(iter([(clean, labels)]), 0.1, spread, seed=3))[0]
        for spread in (0.0, 0.8)
    )
    deviations = varied.flatten(1).std(dim=1)
    assert even.flatten(1).std(dim=1).max() < 0.12
    assert 0.015 < deviations.min() < 0.03
    assert 0.17 < deviations.max() < 0.2
    level = 20 * deviations.log10().mean().item()
    # Four standard errors: 4.8 dB over the images.
    assert level == pytest.approx(denoising.noise_level(0.1, 0.8), abs=0.43)
