"""The error of the choice of test images, on numbers whose truth is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from normkit.lab.by_image import from_blocks, pack, to_blocks
from normkit.lab.claims.claim import Claim, Evidence
from normkit.lab.claims.study import TEST, WITH, WITHOUT, Endpoint, Quantity, mean
from normkit.lab.config import RunConfig
from normkit.lab.crossed import image_error
from normkit.lab.verdicts import interval

from .claims.test_study import claim

Synthetic = Callable[..., Evidence]


def study(
    rng: np.random.Generator, seeds: int, images: int, deviations: tuple[float, float, float]
) -> np.ndarray:
    """Differences by seed and image, around 0, with these deviations of seeds, images and rest."""
    of_seed, of_image, rest = deviations
    return (
        of_seed * rng.standard_normal((seeds, 1))
        + of_image * rng.standard_normal(images)
        + rest * rng.standard_normal((seeds, images))
    )


def test_estimate_is_the_variance_of_the_images() -> None:
    rng = np.random.default_rng(1)
    estimates = [
        image_error(list(study(rng, 5, 200, (0.05, 0.2, 0.3)))).deviation for _ in range(100)
    ]
    assert np.mean(np.square(estimates)) == pytest.approx(0.2**2 / 200, rel=0.06)


def test_seeds_with_nothing_in_common_have_none() -> None:
    # Whatever differs between the images is residual, which the seeds' spread holds already.
    rng = np.random.default_rng(2)
    estimates = [image_error(list(study(rng, 5, 200, (0.05, 0, 0.3)))).deviation for _ in range(50)]
    assert np.mean(estimates) < 0.3 * 0.3 / np.sqrt(5 * 200)
    assert image_error([np.ones(9), np.ones(9)]).deviation == 0


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("of_image", [0.0, 0.1, 0.3])
def test_interval_contains_the_truth(seeds: int, of_image: float) -> None:
    # Spread of the seeds' means 0.01, as accuracies have it; that of the images' mean up to 0.06.
    rng = np.random.default_rng([seeds, round(10 * of_image)])
    contained = []
    for _ in range(400):
        differences = study(rng, seeds, 250, (0.01, of_image, 0.2))
        shared = image_error(list(differences)).deviation
        _, low, high = interval(differences.mean(axis=1), shared=shared)
        contained.append(low <= 0 <= high)
    assert np.mean(contained) == pytest.approx(0.95, abs=0.03)


def test_more_that_is_covered_never_makes_an_interval_narrower() -> None:
    values = [1.0, 2.0]
    _, low, high = interval(values)
    for shared in (0.01, 0.3, 1.0, 10.0):
        _, lower, higher = interval(values, shared=shared)
        assert lower <= low < high <= higher


@pytest.mark.parametrize(
    "unknown", [None, np.array([1.0, 0.0, 1.0, 0.0, 0.0]), np.array([1.0, 0.0])], ids=str
)
def test_seed_without_its_images_leaves_all_unknown(unknown: np.ndarray | None) -> None:
    three = np.array([1.0, 0.0, 1.0])
    assert image_error([three, -three, unknown]) == (0, 0)
    assert image_error([three, -three, np.array([0.1])]).images == 3  # a broken run


def rights(arm: str, config: RunConfig) -> np.ndarray:
    """Say which test images a run has right: with BN a fifth more of them, others by chance."""
    rng = np.random.default_rng([config.seed, arm == WITH])
    easy = np.random.default_rng(0).random(config.test_images) < (0.8 if arm == WITH else 0.6)
    return easy | (rng.random(config.test_images) < 0.2)


def evidence(synthetic: Synthetic, of: Claim, *, recorded: bool = True) -> Evidence:
    """Runs with these images; a vector of the metric's name only where ``recorded``."""

    def values(arm: str, config: RunConfig) -> dict[str, list[float]]:
        return {"test_accuracy": [float(rights(arm, config).mean())] * config.epochs}

    def vectors(arm: str, config: RunConfig) -> dict[str, dict[int, list[int]]]:
        return {"test_accuracy": {config.steps: pack(rights(arm, config))}} if recorded else {}

    return synthetic(of, values, vectors)


def test_endpoint_allows_for_the_choice_of_images(synthetic: Synthetic) -> None:
    of = claim()
    new, old = evidence(synthetic, of), evidence(synthetic, of, recorded=False)
    endpoint = Endpoint("?", TEST.at(WITH) - TEST.at(WITHOUT), matters=1)
    both, seeds_only = endpoint.compare(new), endpoint.compare(old)
    assert both is not None
    assert seeds_only is not None
    assert both.effect == pytest.approx(seeds_only.effect)
    images = new.of(WITH)[0].config.test_images
    assert (both.images, seeds_only.images, seeds_only.shared) == (images, 0, 0)
    matrix = [rights(WITH, r.config) * 1.0 - rights(WITHOUT, r.config) for r in new.of(WITH)]
    assert both.shared == pytest.approx(100 * image_error(matrix).deviation)
    assert both.shared > 0
    with_more = dataclasses.replace(endpoint, shared=2.0).compare(new)
    assert with_more is not None
    assert with_more.shared == pytest.approx(np.hypot(2, both.shared))


def test_quantities_carry_images(synthetic: Synthetic) -> None:
    runs = evidence(synthetic, claim())
    one, other = TEST.at(WITH), TEST.at(WITHOUT)
    for quantity in (one - other, -one, mean(one, other), mean(one - other, one)):
        images = quantity.images(runs)
        assert images.keys() == quantity.by_seed(runs).keys()
        for seed, value in quantity.by_seed(runs).items():
            assert np.mean(images[seed]) == pytest.approx(value)  # type: ignore[arg-type]
    unknown = Quantity(one.by_seed, one.unit)
    assert (one - unknown).image_error(runs) == (0, 0)


def test_blocks_give_the_same_estimate() -> None:
    rng = np.random.default_rng(11)
    whole, by_block = [], []
    for _ in range(100):
        # Losses: a few images are hard for all seeds, and most have nearly none.
        d = study(rng, 5, 1000, (0.02, 0.0, 0.1)) + 0.3 * rng.gamma(0.3, size=1000)
        whole.append(image_error(list(d)).deviation)
        error = image_error([from_blocks(to_blocks(each), 1000) for each in d])
        assert error.images == 1000
        by_block.append(error.deviation)
    assert np.mean(np.square(by_block)) == pytest.approx(np.mean(np.square(whole)), rel=0.06)
