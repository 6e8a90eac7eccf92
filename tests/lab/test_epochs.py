"""Composed batches and several domains within a training."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from normkit.lab import data
from normkit.lab.building import build_model
from normkit.lab.config import RunConfig
from normkit.lab.data.composition import Composition, compose
from normkit.lab.epochs import epoch_batches
from normkit.lab.evaluations import evaluate_under
from normkit.lab.training import train

Make = Callable[..., RunConfig]
PAIRS = (("group", 32), ("labels", 2))
DOMAINS = (("domains-shared", 128, 64), ("domains-specific", 128, 64))


@pytest.fixture(scope="module")
def split(dataset: data.Dataset) -> data.Split:
    return dataset.train.take(256, seed=0)


def test_epoch_has_its_composition(make_config: Make, split: data.Split) -> None:
    batches = list(epoch_batches(make_config(composition=PAIRS), split, 0))
    assert [len(labels) for _, labels in batches] == [64] * 4
    for _, labels in batches:
        for group in labels.split(32):
            assert sorted(Counter(group.tolist()).values()) == [16, 16]
    later = list(epoch_batches(make_config(composition=PAIRS), split, 1))
    assert not torch.equal(later[0][1], batches[0][1])


def test_without_composition_an_epoch_is_what_it_always_was(
    make_config: Make, split: data.Split
) -> None:
    mine = list(epoch_batches(make_config(), split, 1))
    plain = list(data.batches(split, 64, seed=0, epoch=1, size=28, channels_last=True))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(mine, plain, strict=True))


def test_epoch_on_domains_has_each_image_in_both(make_config: Make, split: data.Split) -> None:
    plain = list(epoch_batches(make_config(), split, 0))
    both = list(epoch_batches(make_config(domains="negatives"), split, 0))
    for (images, labels), (twice, named) in zip(plain, both, strict=True):
        assert torch.equal(twice[:64], images)
        assert torch.equal(named, labels.repeat(2))
        # x and 1 − x, standardised with one mean and one deviation: their sum is everywhere one.
        total = twice[:64] + twice[64:]
        assert torch.allclose(total, total.flatten()[0].expand_as(total), atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"composition": PAIRS},
        {"domains": "negatives"},
        {"task": "denoising", "noise": 0.1, "model": "denoiser"},
    ],
    ids=["plain", "composed", "domains", "denoising"],
)
def test_dropped_batch_changes_no_other(
    make_config: Make, split: data.Split, fields: dict[str, Any]
) -> None:
    config = make_config(batch_size=96, **fields)
    kept = list(epoch_batches(config, split, 1))
    dropped = list(epoch_batches(dataclasses.replace(config, drop_last=True), split, 1))
    assert (len(kept), len(dropped)) == (3, 2)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(kept, dropped, strict=False))


RUNS: dict[str, dict[str, Any]] = {
    "composed": {"composition": PAIRS, "norm": "ghost", "norm_options": (("ghost_size", 32),)},
    "mixed": {"composition": (*PAIRS, ("mixed", True)), "evaluations": (("composed", 20, 2),)},
    "shared": {"domains": "negatives", "norm": "batch", "evaluations": DOMAINS},
    "specific": {
        "domains": "negatives",
        "norm": "domain",
        "norm_options": (("domains", 2), ("share_affine", False)),
        "evaluations": DOMAINS,
    },
    "dropped": {"drop_last": True, "train_images": 300, "norm": "batch", "frozen_epochs": 1},
    "dropped, denoising": {
        "drop_last": True,
        "train_images": 300,
        "task": "denoising",
        "noise": 0.1,
        "model": "denoiser",
        "model_options": (("width", 4),),
    },
}


@pytest.mark.parametrize(
    ("name", "stop"),
    list(zip(RUNS, (1, 4, 6, 1, 4, 6), strict=True)),  # within an epoch, and after one
)
def test_stopped_run_resumes_bit_for_bit(
    make_config: Make, dataset: data.Dataset, make_log: Any, name: str, stop: int
) -> None:
    config = make_config(size=16, momentum=0.9, **RUNS[name])
    whole, parts = make_log(), make_log()
    train(config, dataset, whole)
    asked = iter([False] * (stop - 1))
    assert train(config, dataset, parts, stopping=lambda: next(asked, True)).stopped
    torch.manual_seed(12345)
    train(config, dataset, parts, resume=parts.checkpoints[-1][1])
    assert parts.metrics == whole.metrics


def test_under_composed_each_group_is_a_batch(
    make_config: Make, dataset: data.Dataset, split: data.Split
) -> None:
    config = make_config(norm="batch")
    model = build_model(config, in_channels=1, classes=10).train()
    with torch.no_grad():
        for images, _ in data.batches(split, 64, seed=0):
            model(images)
    found, _ = evaluate_under([("composed", 20, 2)], model, dataset, config, 0)
    composed = compose(dataset.test, Composition(20, 2), 20, seed=config.seed, epoch=0)
    right = 0
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.track_running_stats = False
    with torch.no_grad():
        for images, labels in data.batches(composed, 20, seed=0, shuffle=False, channels_last=True):
            right += int((model(images).argmax(1) == labels).sum())
    assert found["test_accuracy@composed-20-2"] == right / len(composed)


@pytest.mark.slow
@pytest.mark.minutes
def test_batch_norm_learns_from_composition(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    log = make_log()
    images = min(5000, len(dataset.train))
    config = make_config(
        size=16,
        norm="ghost",
        norm_options=(("ghost_size", 32),),
        composition=PAIRS,
        batch_size=256,
        train_images=images,
        test_images=1000,
        epochs=20,
        momentum=0.9,
        seed=100,
        final_evaluations=(("composed", 32, 2),),
    )
    train(config, dataset, log)
    last = config.steps
    seen = log.metrics["epoch_train_accuracy", last]
    assert seen > 0.7
    # Of batches like the training's it gets as many right; of the images themselves, few.
    assert log.metrics["test_accuracy@composed-32-2", last] > seen - 0.1
    assert log.metrics["test_accuracy", last] < 0.5
