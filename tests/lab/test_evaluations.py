"""Evaluations under conditions: what they measure, and that they change nothing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from normkit.lab import data
from normkit.lab.building import build_model
from normkit.lab.by_image import unpack
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.data.batches import order
from normkit.lab.data.corruptions import corrupted
from normkit.lab.evaluations import evaluate, evaluate_under, population
from normkit.lab.training import train

Make = Callable[..., RunConfig]
BATCH = ("batch", 50)
CONDITIONS = (BATCH, ("population", 120, 50), ("population", 100, 2), ("train", 128))


@pytest.fixture(scope="module")
def small(dataset: data.Dataset) -> data.Dataset:
    """The halves of the tiny run."""
    return dataclasses.replace(
        dataset, train=dataset.train.take(256, seed=0), test=dataset.test.take(100, seed=0)
    )


def trained(config: RunConfig, dataset: data.Dataset) -> nn.Module:
    """A model whose running statistics have moved, but not far."""
    model = build_model(config, in_channels=1, classes=10).train()
    for images, _ in data.batches(dataset.train, 64, seed=0, channels_last=True):
        model(images)
    return model


# alexnet draws for its dropout
@pytest.mark.parametrize(("model", "norm"), [("lenet5", "torch-batch"), ("alexnet", "batch")])
def test_evaluations_change_no_number(
    make_config: Make, dataset: data.Dataset, make_log: Any, model: str, norm: str
) -> None:
    plain, watched = make_log(), make_log()
    config = make_config(model=model, norm=norm, lr=0.01)
    if model == "alexnet":
        config = dataclasses.replace(
            config,
            model_options=(("dropout", 0.5), ("hidden", 64), ("width", 16)),
            train_images=128,
            test_images=50,
        )
    train(config, dataset, plain)
    train(dataclasses.replace(config, evaluations=CONDITIONS), dataset, watched)
    read = {key: value for key, value in watched.metrics.items() if key not in plain.metrics}
    assert {name for name, _ in read} == {
        named(f"test_{what}", condition)
        for what in ("accuracy", "loss")
        for condition in CONDITIONS
    }
    assert {key: watched.metrics[key] for key in plain.metrics} == plain.metrics


def test_final_evaluations_come_after_the_last_epoch_only(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    log = make_log()
    train(make_config(evaluations=(("batch", 20),), final_evaluations=(BATCH,)), dataset, log)
    steps = {name: [s for n, s in log.metrics if n == name] for name, _ in log.metrics}
    assert steps["test_accuracy@batch-20"] == [4, 8]
    assert steps["test_loss@batch-50"] == [8]


def test_stopped_run_has_equal_evaluations(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    config = make_config(evaluations=CONDITIONS)
    whole, parts = make_log(), make_log()
    train(config, dataset, whole)
    asked = iter([False] * 3)
    train(config, dataset, parts, stopping=lambda: next(asked, True))
    train(config, dataset, parts, resume=parts.checkpoints[-1][1])
    assert parts.metrics == whole.metrics


@pytest.mark.parametrize("norm", ["torch-batch", "batch"])
def test_under_batch_the_layers_use_their_batch(
    make_config: Make, small: data.Dataset, norm: str
) -> None:
    config = make_config(norm=norm)
    model = trained(config, small)
    found, _ = evaluate_under([("batch", 50)], model, small, config, 0)
    # The same by hand, on a copy that may remember what it likes.
    other = copy.deepcopy(model).train()
    batches = data.batches(small.test, 50, seed=0, channels_last=True)
    with torch.no_grad():
        right = sum(int((other(images).argmax(1) == labels).sum()) for images, labels in batches)
    assert found["test_accuracy@batch-50"] == right / 100
    assert found["test_loss@batch-50"] != evaluate(model, small.test, config).loss


@pytest.mark.parametrize("condition", CONDITIONS)
def test_model_and_generators_stay_as_they_were(
    make_config: Make, small: data.Dataset, condition: tuple[str | int, ...]
) -> None:
    config = make_config(norm="batch")
    model = trained(config, small)
    model.norm2.eval()  # type: ignore[operator, union-attr]  # a mode of its own
    before = copy.deepcopy(model)
    torch.manual_seed(7)
    generator = torch.get_rng_state()
    evaluate_under([condition], model, small, config, 0)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    for (name, mine), (_, theirs) in zip(
        model.state_dict().items(), before.state_dict().items(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_failed_evaluation_restores_model(make_config: Make, small: data.Dataset) -> None:
    config = make_config(norm="batch")
    model = trained(config, small)
    before = copy.deepcopy(model.state_dict())

    def fail(*_: Any) -> None:
        raise RuntimeError("no luck")

    hook = model.fc3.register_forward_hook(fail)  # type: ignore[union-attr, operator]
    for condition in CONDITIONS:
        with pytest.raises(RuntimeError, match="no luck"):
            evaluate_under([condition], model, small, config, 0)
    hook.remove()
    assert all(m.training for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("norm", ["torch-batch", "batch"])
def test_under_population_the_layers_use_the_training_images(
    make_config: Make, small: data.Dataset, norm: str
) -> None:
    config = make_config(norm=norm)
    model = trained(config, small)
    found, _ = evaluate_under([("population", 256, 256)], model, small, config, 0)
    # All images in one batch: its mean and variance are what a layer that forgets all but the
    # last batch remembers of it.
    other = copy.deepcopy(model).train()
    for layer in other.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0
    with torch.no_grad():
        other(next(data.batches(small.train, 256, seed=0, channels_last=True))[0])
    accuracy, loss, *_ = evaluate(other, small.test, config)
    assert found["test_accuracy@population-256-256"] == accuracy
    assert found["test_loss@population-256-256"] == pytest.approx(loss, rel=1e-4)
    assert loss != pytest.approx(evaluate(model, small.test, config).loss, rel=0.01)


def test_under_train_scores_training_images_without_noise(
    make_config: Make, small: data.Dataset
) -> None:
    config = make_config(model="alexnet", norm="batch", model_options=(("dropout", 0.5),))
    model = trained(config, small)
    found, _ = evaluate_under([("train", 256), ("train", 1)], model, small, config, 0)
    accuracy, loss, *_ = evaluate(model, small.train, config)
    assert found["test_accuracy@train-256"] == accuracy
    assert found["test_loss@train-256"] == pytest.approx(loss, rel=1e-4)
    # One image leaves nothing to batch statistics, and needs none.
    assert found["test_accuracy@train-1"] in (0.0, 1.0)
    assert loss != evaluate(model, small.test, config).loss


def test_corrupted_images_are_scored_as_they_come(make_config: Make, small: data.Dataset) -> None:
    """With running statistics, with those of mixed batches, and of batches in label order."""
    config = make_config(norm="batch")
    model = trained(config, small)
    ways = ("corrupted", 3, 4), ("corrupted-batch", 3, 4, 50), ("corrupted-sorted", 3, 4, 50)
    measured, vectors = evaluate_under(ways, model, small, config, 0)
    split = corrupted(small.test, 3, 4)
    by_label = split.labels.argsort(stable=True)
    stream = dataclasses.replace(split, images=split.images[by_label], labels=by_label)
    plain, sorted_ = (
        next(data.batches(each, 100, seed=0, shuffle=False, channels_last=True))[0]
        for each in (split, stream)
    )
    with torch.no_grad():
        right = model.eval()(plain).argmax(1) == split.labels
        model.train()
        halves = torch.cat([model(sorted_[:50]), model(sorted_[50:])]).argmax(1)
        drawn = order(100, config.seed, epoch=0)
        mixed = torch.cat([model(plain[drawn[:50]]), model(plain[drawn[50:]])]).argmax(1)
    expected = {
        ways[0]: right,
        ways[1]: mixed == split.labels[drawn],
        ways[2]: halves == split.labels[by_label],
    }
    for way, each in expected.items():
        assert measured[named("test_accuracy", way)] == pytest.approx(each.double().mean().item())
    # Image by image in the order of the split, whatever the order of evaluation.
    recorded = unpack(vectors[named("test_accuracy", ways[2])], 100)
    assert torch.equal(torch.from_numpy(recorded)[by_label].bool(), expected[ways[2]])


def test_broken_model_counts_at_chance(make_config: Make, small: data.Dataset) -> None:
    config = make_config(norm="batch")
    model = trained(config, small)
    with torch.no_grad():
        model.fc1.weight[0, 0] = float("nan")  # type: ignore[union-attr, index]
    found, _ = evaluate_under([BATCH], model, small, config, 0)
    assert found == {"test_accuracy@batch-50": 0.1, "test_loss@batch-50": None}


def test_overflowing_values_count_at_chance(make_config: Make, small: data.Dataset) -> None:
    config = make_config(norm="batch")
    model = trained(config, small)
    with torch.no_grad():  # finite, and what it gives is not
        model.conv2.weight.fill_(1e38)  # type: ignore[union-attr, operator]
    found, _ = evaluate_under([("population", 200, 50)], model, small, config, 0)
    assert found == {"test_accuracy@population-200-50": 0.1, "test_loss@population-200-50": None}


def test_exploding_run_counts_at_chance_under_each_condition(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    log = make_log()
    train(make_config(norm="none", lr=1e20, evaluations=(BATCH,)), dataset, log)
    assert [log.metrics["test_accuracy@batch-50", step] for step in (4, 8)] == [0.1, 0.1]
    assert log.metrics["test_loss@batch-50", 8] is None


def test_images_for_statistics_are_drawn_by_chance_and_by_the_seed(
    make_config: Make, small: data.Dataset
) -> None:
    config = make_config()

    def labels(samples: int, size: int, epoch: int = 0) -> list[list[int]]:
        drawn = population(small.train, samples, size, config, epoch)
        return [batch.tolist() for _, batch in drawn]

    assert [len(batch) for batch in labels(100, 30)] == [30, 30, 30, 10]
    # The same images, cut otherwise.
    assert [*chain(*labels(100, 30))] == [*chain(*labels(100, 10))]
    assert labels(100, 10) != labels(100, 10, epoch=1)
    # Ten images of the training split's own order are one of each class.
    assert any(len(set(batch)) < 10 for batch in labels(100, 10))
    assert len(labels(256, 64)) == 4
