"""Images lit differently: the same ones on every machine and in every edition."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch

from normkit.lab import data
from normkit.lab.data import Dataset, Split
from normkit.lab.data.catalogue import spec_of
from normkit.lab.data.lighting import lighting, lit

LIT = spec_of("fashion-mnist-lit")


def dataset(images: torch.Tensor) -> Dataset:
    split = Split(images, torch.arange(len(images)) % 10)
    return Dataset("x", "X", "here", "none", tuple("abcdefghij"), split, split)


def test_lighting_never_changes() -> None:
    # If this fails, every run on these images in the world is of other images.
    for half, contrast, brightness in (
        (0, [0.30439081, 0.49904032], [0.25304541, 0.07212477]),
        (1, [0.15216017, 0.15288561], [0.74404913, 0.82778814]),
    ):
        found = lighting(np.array([0, 9_999]), half)
        assert found[0].tolist() == pytest.approx(contrast, abs=1e-8)
        assert found[1].tolist() == pytest.approx(brightness, abs=1e-8)


def test_each_image_has_a_contrast_and_a_brightness_of_its_own() -> None:
    images = torch.zeros(200, 1, 1, 3, dtype=torch.uint8)
    images[..., 1], images[..., 2] = 100, 255
    where = np.arange(200)
    result = lit(dataset(images), LIT, (where, where))
    for half, split in enumerate((result.train, result.test)):
        pixels = split.images[:, 0, 0]
        contrast, brightness = lighting(where, half)
        for column, pixel in enumerate((0, 100, 255)):
            exact = torch.from_numpy(255 * brightness + contrast * pixel)
            assert (pixels[:, column] - exact).abs().max() <= 0.5
        assert 0.1 <= contrast.min() < 0.12 and 0.97 < contrast.max() <= 1
        assert brightness.min() >= 0 and (contrast + brightness).max() <= 1
    assert not torch.equal(result.train.images, result.test.images)


def test_subset_has_the_same_images_as_the_whole() -> None:
    images = torch.randint(0, 256, (1_500, 1, 4, 4), dtype=torch.uint8)
    every, some = np.arange(1_500), np.array([3, 999, 1_000, 1_499])
    whole = lit(dataset(images), LIT, (every, every))
    part = lit(dataset(images[some]), LIT, (some, some))
    assert torch.equal(part.train.images, whole.train.images[some])
    assert torch.equal(part.test.images, whole.test.images[some])


@pytest.mark.usefixtures("no_commands", "small")
def test_shipped_subset_is_lit_offline() -> None:
    loaded = data.load("fashion-mnist-lit", offline=True)
    plain = data.load("fashion-mnist", offline=True)
    assert (loaded.name, loaded.title, loaded.subset) == (LIT.name, "Fashion-MNIST, lit", True)
    assert torch.equal(loaded.train.labels, plain.train.labels)
    # These very images, at the places 43 and 59,961 of the one official file and 0 of the other.
    sums = [
        zlib.crc32(half.images[image].numpy().tobytes())
        for half, image in ((loaded.train, 0), (loaded.train, -1), (loaded.test, 0))
    ]
    assert sums == [3093449443, 2964209422, 2676835173]
    mean, std = loaded.train.moments()
    assert mean[0] == pytest.approx(LIT.mean[0], abs=0.002)
    assert std[0] == pytest.approx(LIT.std[0], abs=0.002)
    assert loaded.test.mean == LIT.mean


def test_whole_is_lit_in_the_files_order(small: Any, tmp_path: Any) -> None:
    folder = small.write(tmp_path / "mine")
    loaded = data.load("fashion-mnist-lit", folder=folder)
    plain = data.load("fashion-mnist", folder=folder)
    assert (loaded.origin, loaded.subset, len(loaded.train)) == (plain.origin, False, 20)
    contrast, brightness = lighting(np.arange(20), 0)
    exact = 255 * brightness[-1] + contrast[-1] * plain.train.images[-1].double()
    assert (loaded.train.images[-1] - exact).abs().max() <= 0.5
