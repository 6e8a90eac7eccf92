"""Figures image by image: recorded in the order of the test images, packed, and read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from normkit.lab import data, worker
from normkit.lab.by_image import from_blocks, pack, to_blocks, unpack
from normkit.lab.claims.measures.estimators import jumps
from normkit.lab.claims.study import (
    NATS,
    TEST,
    TEST_LOSS,
    TRAIN,
    Measure,
    either,
    error,
    final,
    first,
    last,
    mean_of_epochs,
    quarter,
    while_training,
)
from normkit.lab.config import RunConfig
from normkit.lab.evaluations import evaluate, evaluate_under
from normkit.lab.export_tables import TABLES
from normkit.lab.runs import Run
from normkit.lab.store import Store
from normkit.lab.training import train

from .test_evaluations import trained

Make = Callable[..., RunConfig]
POPULATION = ("population", 128, 32)
UNDER = (("batch", 20), ("composed", 20, 2), ("train", 64))
DENOISING = {
    "model": "denoiser",
    "model_options": (("width", 4),),
    "norm": "batch",
    "task": "denoising",
    "noise": 0.2,
    "optimizer": "adam",
    "lr": 0.01,
}


def run_of(store: Store, config: RunConfig) -> Run:
    """Train a run in a store, and read it."""
    store.add(config)
    assert worker.run(worker.argument(store.path, config.key), lambda: False) != "failed"
    run = store.get(config.key)
    assert run is not None
    return run


@pytest.mark.parametrize("count", [1, 47, 48, 49, 10_000])
def test_packed_bits_come_back(count: int) -> None:
    right = np.random.default_rng(count).integers(2, size=count)
    packed = pack(right)
    assert np.array_equal(unpack(packed, count), right)
    assert [int(float(each)) for each in packed] == packed  # also where they are read as floats
    assert len(packed) == -(-count // 48)


def test_each_image_is_in_its_place(make_config: Make, dataset: data.Dataset) -> None:
    config = make_config(norm="batch", seed=3)
    small = dataclasses.replace(
        dataset, train=dataset.train.take(256, seed=0), test=dataset.test.take(100, seed=0)
    )
    model = trained(config, small)
    images, labels = next(data.batches(small.test, 100, seed=0, shuffle=False, channels_last=True))
    with torch.no_grad():
        right = (model.eval()(images).argmax(1) == labels).numpy()
        assert np.array_equal(evaluate(model, small.test, config).figures, right)
        # The whole test set as one batch: its order changes no statistics. They move here.
        right_in_batch = (model.train()(images).argmax(1) == labels).numpy()
    model = trained(config, small)
    metrics, vectors = evaluate_under([("batch", 100), *UNDER], model, small, config, 0)
    assert np.array_equal(unpack(vectors["test_accuracy@batch-100"], 100), right_in_batch)
    assert 0 < right_in_batch.sum() < 50
    assert unpack(vectors["test_accuracy@batch-20"], 100).mean() == pytest.approx(
        metrics["test_accuracy@batch-20"]
    )
    assert list(vectors["test_accuracy@train-64"]) == []
    assert "test_accuracy@composed-20-2" not in vectors


def test_measures_have_the_images_that_they_are_the_mean_of(
    store: Store, make_config: Make
) -> None:
    config = make_config(epochs=4, evaluations=(POPULATION,), final_evaluations=UNDER)
    run = run_of(store, config)
    under = last("test_accuracy", "", under=while_training)
    measures: list[Measure] = [
        TEST,
        error(TEST, ""),
        under.minus(TEST, ""),
        mean_of_epochs(error(under, ""), ""),
        TEST_LOSS,
        quarter(TEST_LOSS.minus(last("test_loss", "", NATS, while_training), ""), ""),
        quarter(TEST, ""),
        jumps(TEST, ""),
        quarter(TEST.minus(under, ""), "", late=False),
        first(TEST, ""),
        either(lambda run: under, "", like=TEST),
        last("test_accuracy", "", under=final("batch")),
        # A training figure depends on no test image; less one that does, it does.
        TRAIN.minus(TEST, ""),
        last("test_accuracy", "", under=final("train")).minus(under, ""),
    ]
    for measure in measures:
        images = measure.images(run)
        assert images is not None
        assert len(images) == 100
        assert images.mean() == pytest.approx(measure.read(run), rel=1e-5, abs=1e-4), measure
        for (x, value), (place, by_image) in zip(
            measure.curve(run), measure.image_curve(run), strict=True
        ):
            assert x == place
            assert by_image is not None
            assert by_image.mean() == pytest.approx(value, rel=1e-5, abs=1e-4)
    assert np.array_equal(TRAIN.images(run), [TRAIN.read(run)])
    unknown = last("test_accuracy", "", under=final("composed"))
    assert unknown.read(run) is not None
    assert unknown.images(run) is None
    assert TEST.minus(unknown, "").images(run) is None
    old = dataclasses.replace(run, vectors={})
    assert TEST.read(old) == TEST.read(run)
    assert [measure.images(old) for measure in measures] == [None] * len(measures)


def test_both_domains_of_an_image_count(store: Store, make_config: Make) -> None:
    run = run_of(store, make_config(domains="negatives", epochs=1))
    images = TEST.images(run)
    assert images is not None
    assert set(images) == {0, 0.5, 1}
    assert images.mean() == pytest.approx(TEST.read(run))


def test_broken_run_hangs_on_no_image(store: Store, make_config: Make) -> None:
    run = run_of(store, make_config(norm="none", lr=1e20, evaluations=(POPULATION,)))
    assert run.status == "diverged"
    for measure in (TEST, last("test_accuracy", "", under=POPULATION), mean_of_epochs(TEST, "")):
        assert np.array_equal(measure.images(run), [0.1])


def test_denoised_images_have_their_psnr_in_blocks(store: Store, make_config: Make) -> None:
    run = run_of(store, make_config(**DENOISING, evaluations=(POPULATION,)))
    broken = run_of(store, make_config(**DENOISING | {"norm": "none", "lr": 1e30}))
    assert broken.status == "diverged"
    for measure, of in (
        (last("test_psnr", ""), run),
        (last("test_psnr", "", under=POPULATION), run),
        (mean_of_epochs(last("test_loss", ""), ""), run),
        (last("test_psnr", ""), broken),  # the noisy images themselves
    ):
        images = measure.images(of)
        assert images is not None
        assert len(images) == 100
        assert images.mean() == pytest.approx(measure.read(of), rel=1e-5)
        assert images.std() > 0.1


@pytest.mark.parametrize("count", [30, 997, 10_000])
def test_blocks_tell_of_the_spread_of_single_images(count: int) -> None:
    values = np.random.default_rng(count).gamma(0.2, size=count)  # as losses: most are small
    blocks = to_blocks(values)
    assert len(blocks) == min(count, 50)
    back = from_blocks(blocks, count)
    assert back.mean() == pytest.approx(values.mean(), rel=1e-3)
    assert back.std() == pytest.approx(values.std(), rel=0.4)
    other = np.random.default_rng(1).gamma(0.2, size=count)
    difference = from_blocks(blocks, count) - from_blocks(to_blocks(other), count)
    assert np.allclose(difference, from_blocks(to_blocks(values - other), count), atol=1e-2)


def test_stopped_run_has_equal_vectors(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    config = make_config(evaluations=UNDER)
    whole, parts = make_log(), make_log()
    train(config, dataset, whole)
    asked = iter([False] * 5)
    train(config, dataset, parts, stopping=lambda: next(asked, True))
    train(config, dataset, parts, resume=parts.checkpoints[-1][1])
    assert parts.vectors == whole.vectors
    # Two figures each, after two epochs; composed batches have none.
    assert len(whole.vectors) == 2 * 2 * 3


def test_exports_leave_them_out(store: Store, make_config: Make) -> None:
    run = run_of(store, make_config(probes=(("activations", 100),)))
    assert "test_accuracy" in run.vectors
    exported = {row[1] for row in TABLES["vectors"].rows(store)}
    assert exported == set(run.vectors) - {"test_accuracy", "test_loss"} != set()
