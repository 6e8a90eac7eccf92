"""What the tasks say of themselves, against the same computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from normkit.lab import data
from normkit.lab.config import RunConfig
from normkit.lab.denoising import handed_back, psnr, psnr_loss
from normkit.lab.epochs import epoch_batches
from normkit.lab.evaluations import chance_score
from normkit.lab.scoring import in_order, population
from normkit.lab.tasks import TASKS, Batches, task_of

Make = Callable[..., RunConfig]
NOISE = 0.2


@pytest.fixture(scope="module")
def split(dataset: data.Dataset) -> data.Split:
    return dataset.train.take(256, seed=0)


@pytest.fixture
def config(make_config: Make) -> RunConfig:
    return make_config(task="denoising", noise=NOISE)


def noises(batches: Batches) -> list[torch.Tensor]:
    return [images - clean for images, clean in batches]


def test_classification_task_is_unchanged(make_config: Make, split: data.Split) -> None:
    config = make_config()
    batches = list(epoch_batches(config, split, 1))
    plain = list(data.batches(split, 64, seed=0, epoch=1, size=28, channels_last=True))
    for mine, theirs in zip(batches, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    task = task_of(config)
    scores = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
    assert task.count(scores, torch.tensor([0, 1, 1])) == 2
    assert task.chance_loss(config, 10) == 0.99 * math.log(10)
    assert task.chance_figures(10, iter([])).tolist() == [0.1]


def test_noisy_images_are_the_pixels_and_gaussian_noise(
    config: RunConfig, split: data.Split
) -> None:
    batches = list(epoch_batches(config, split, 0))
    clean = torch.cat([targets for _, targets in batches])
    # Each pixel on the scale where 255 is 1, in the order of the epoch.
    pixels = [images for images, _ in data.batches(split, 64, seed=0, mean=(0.0,), std=(1.0,))]
    assert torch.equal(clean, torch.cat(pixels))
    assert (clean.min(), clean.max()) == (0, 1)
    noise = torch.cat(noises(iter(batches))).double()
    count = noise.numel()
    # Five standard errors of the mean, of the variance and of the fourth moment of a normal sample.
    assert abs(noise.mean().item()) < 5 * NOISE / math.sqrt(count)
    assert noise.var().item() == pytest.approx(NOISE**2, rel=5 * math.sqrt(2 / count))
    fourth = (noise / NOISE).pow(4).mean().item()
    assert fourth == pytest.approx(3, abs=5 * math.sqrt(96 / count))
    # It has nothing to do with the image.
    together = torch.corrcoef(torch.stack([noise.flatten(), clean.flatten().double()]))[0, 1]
    assert abs(together.item()) < 5 / math.sqrt(count)


def test_training_noise_depends_on_seed_epoch_and_step(
    make_config: Make, config: RunConfig, split: data.Split
) -> None:
    torch.manual_seed(1)
    first = noises(epoch_batches(config, split, 0))
    torch.manual_seed(2)
    again = noises(epoch_batches(config, split, 0))
    for mine, theirs in zip(first, again, strict=True):
        torch.testing.assert_close(mine, theirs)
    other_epoch = noises(epoch_batches(config, split, 1))
    other_seed = noises(epoch_batches(make_config(task="denoising", noise=NOISE, seed=1), split, 0))
    kinds = [first[0], first[1], other_epoch[0], other_seed[0]]
    kinds.append(noises(population(split, 64, 64, config, 0))[0])
    kinds.append(next(iter(noises(in_order(split, config, 64)))))
    for index, mine in enumerate(kinds):
        for theirs in kinds[:index]:
            assert abs((mine * theirs).mean().item()) < 5 * NOISE**2 / math.sqrt(mine.numel())


def test_test_images_have_one_noise_for_all_runs(
    make_config: Make, config: RunConfig, split: data.Split
) -> None:
    other = make_config(task="denoising", noise=NOISE, seed=5, norm="none", batch_size=32, epochs=7)
    for mine, theirs in zip(in_order(split, config), in_order(split, other), strict=True):
        assert torch.equal(mine[0], theirs[0])
        assert torch.equal(mine[1], theirs[1])


def test_psnr_by_hand() -> None:
    clean = torch.full((2, 1, 2, 2), 0.5)
    restored = clean.clone()
    restored[0] += torch.tensor([0.1, -0.1, 0.1, -0.1]).reshape(1, 2, 2)  # error 0.01: 20 dB
    restored[1, 0, 0, 0] += 0.2  # error 0.04 / 4: 20 dB too
    assert psnr(restored, clean).tolist() == pytest.approx([20, 20], abs=1e-4)
    assert psnr_loss(restored, clean, reduction="sum").item() == pytest.approx(-40, abs=1e-4)
    # PSNR of each image, and then the mean: not that of the mean error.
    restored[1] = clean[1] + 0.01
    assert psnr(restored, clean).tolist() == pytest.approx([20, 40], abs=1e-2)
    loss = psnr_loss(restored, clean, reduction="mean").item()
    assert loss == pytest.approx(-(20 + 40) / 2, abs=1e-2)


def test_only_figure_clips_images() -> None:
    white = torch.ones(1, 1, 2, 2)
    assert psnr(white + 0.5, white).item() == pytest.approx(80)
    assert psnr_loss(white + 0.5, white, reduction="mean").item() == pytest.approx(-6.02, abs=0.01)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_nan_pixel_counts_as_black(broken: float) -> None:
    clean = torch.full((1, 1, 2, 2), 0.5)
    restored = clean.clone()
    restored[0, 0, 0, 0] = broken
    assert psnr(restored, clean).item() == pytest.approx(10 * math.log10(4 / 0.25), abs=1e-3)


def test_chance_level_is_noisy_image(config: RunConfig, dataset: data.Dataset) -> None:
    found = chance_score(dataset, config).figure
    by_hand, count = 0.0, 0
    for images, clean in in_order(dataset.test, config):
        errors = (images.clamp(0, 1) - clean).square().mean((1, 2, 3))
        by_hand -= 10 * errors.log10().sum().item()
        count += len(clean)
    assert found == pytest.approx(by_hand / count, rel=1e-5)
    # Clipped, the noise of a black pixel loses its lower half: better than 10 log10(1 / noise²).
    unclipped = 10 * math.log10(1 / NOISE**2)
    assert unclipped + 1 < found < unclipped + 10 * math.log10(2)
    assert handed_back(iter([(clean, clean)])).mean().item() == pytest.approx(80)


def test_loss_no_better_than_the_noise_has_learned_nothing(config: RunConfig) -> None:
    limit = TASKS["denoising"].chance_loss(config, 10)
    clean = torch.zeros(1, 1, 4, 4)

    def loss(factor: float) -> float:
        restored = clean + NOISE * math.sqrt(factor)
        return psnr_loss(restored, clean, reduction="mean").item()

    assert loss(0.98) < limit < loss(1.0)
