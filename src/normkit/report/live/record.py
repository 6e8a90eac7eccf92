"""Train the network of the live page, and record what each step does to its statistics.

The network and the data are those of claim C24 at the tour's size: the book's LeNet, whose epochs
end with a batch of 16. There are more epochs, and the learning rate falls to zero, so that the
network at the end is a good one. ``python -m normkit.report.live.record [FILE]`` writes
the recording that ships with the package.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from normkit.lab import data
from normkit.lab.building import build_model, build_optimizer
from normkit.lab.claims.claim import Available
from normkit.lab.claims.measures.builds import LENET, PLANS
from normkit.lab.config import RunConfig
from normkit.lab.data.split import Dataset, Split
from normkit.lab.epochs import epoch_batches
from normkit.lab.schedules import set_rate
from normkit.lab.scoring import in_order, population, score
from normkit.report.live.recording import LAYERS, SHIPPED, Recording, save
from normkit.statistics.recalibrate import recalibrate

__all__ = ["record", "recorded_config"]

EPOCHS = 8
POPULATION = 2_000
"""Training images that population statistics are measured on after each step."""
FINAL_POPULATION = 10_000
"""The same after the last step, for the network on the page."""
JUDGED = 1_000
"""Test images for the accuracy after each step."""
SHOWN = 500
"""Test images on the page."""


def recorded_config() -> RunConfig:
    """Return the run of C24's LeNet at the tour's size with seed 0, longer and with a schedule."""
    runs = PLANS[0]("tour", Available.whole("fashion-mnist"))
    config = next(config for arm, config in runs if arm == LENET and config.seed == 0)
    return dataclasses.replace(
        config, epochs=EPOCHS, schedule="cosine", evaluations=(), test_images=JUDGED
    )


def record(
    config: RunConfig,
    dataset: Dataset,
    *,
    shown: int = SHOWN,
    population_images: int = POPULATION,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> Recording:
    """Train and record.

    Args:
        shown: test images that the recording holds.
        population_images: for population statistics after each step.
        progress: called as ``progress(step, steps)`` after each step.
    """
    drawn = dataclasses.replace(
        dataset,
        train=dataset.train.take(config.train_images, seed=config.seed),
        test=dataset.test.take(config.test_images, seed=0),
    )
    channels = dataset.train.images.shape[1]
    model = build_model(config, in_channels=channels, classes=len(dataset.classes))
    recorder = _Recorder(model, config, drawn, population_images)
    optimizer = build_optimizer(config, model)
    for epoch in range(config.epochs):
        for images, targets in epoch_batches(config, drawn.train, epoch):
            model.train()
            set_rate(optimizer, config, len(recorder.sizes))
            loss = nn.functional.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(len(targets))
            progress(len(recorder.sizes), config.steps)
    final = _population(model, drawn, config, min(FINAL_POPULATION, config.train_images))
    weights = {
        name: np.ascontiguousarray(value.numpy())
        for name, value in model.state_dict().items()
        if value.is_floating_point()
    }
    pool = _shown(dataset.test, shown)
    arrays = {
        **weights,
        **{f"{name}.population_mean": final[name][0].numpy() for name in LAYERS},
        **{f"{name}.population_var": final[name][1].numpy() for name in LAYERS},
        "images": pool.images[:, 0].numpy(),
        "labels": pool.labels.to(torch.uint8).numpy(),
        **recorder.arrays(),
    }
    return Recording(arrays, _facts(config, dataset, model, recorder.channels(), population_images))


class _Recorder:
    """Statistics after each step, of all channels."""

    def __init__(
        self, model: nn.Module, config: RunConfig, dataset: Dataset, population_images: int
    ) -> None:
        self.model, self.config, self.dataset = model, config, dataset
        self.population_images = population_images
        self.sizes: list[int] = []
        self.accuracy: list[tuple[float, float]] = []
        # By layer: for each step a pair of tensors (3, channels), of means and of variances.
        self.moments: dict[str, list[Tensor]] = {name: [] for name in LAYERS}
        self.before = _remembered(model)

    def step(self, size: int) -> None:
        """Take in the state after a step on ``size`` images."""
        now = _remembered(self.model)
        moving = self._accuracy()
        with recalibrate(
            self.model,
            population(self.dataset.train, self.population_images, 500, self.config, epoch=0),
            samples=None,
            layerwise=False,
            progress=False,
        ):
            under = _remembered(self.model)
            self.accuracy.append((moving, self._accuracy()))
        for name in LAYERS:
            momentum = cast("float", _layer(self.model, name).momentum)
            # What the batch must have been for the average to move as it did.
            batch = (now[name] - (1 - momentum) * self.before[name]) / momentum
            self.moments[name].append(torch.stack([batch, now[name], under[name]]))
        self.before = now
        self.sizes.append(size)

    def _accuracy(self) -> float:
        self.model.eval()
        return score(self.model, in_order(self.dataset.test, self.config), self.config).figure

    def channels(self) -> list[int]:
        """Return of each layer the channel whose moving mean is off by the median amount."""
        chosen = []
        for name in LAYERS:
            moments = torch.stack(self.moments[name])  # (T, 3, 2, C)
            off = (moments[:, 1, 0] - moments[:, 2, 0]) / moments[:, 2, 1].sqrt()
            order = off.square().mean(0).argsort()
            chosen.append(int(order[len(order) // 2]))
        return chosen

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what was recorded, of one channel of each layer."""
        moments = torch.stack(
            [
                torch.stack(self.moments[name])[..., channel]
                for name, channel in zip(LAYERS, self.channels(), strict=True)
            ]
        )  # (layers, T, 3, 2)
        return {
            "sizes": np.array(self.sizes, dtype=np.float32),
            "accuracy": np.array(self.accuracy, dtype=np.float32),
            "means": np.ascontiguousarray(moments[..., 0].numpy(), dtype=np.float32),
            "variances": np.ascontiguousarray(moments[..., 1].numpy(), dtype=np.float32),
        }


def _layer(model: nn.Module, name: str) -> nn.BatchNorm2d:
    return cast("nn.BatchNorm2d", model.get_submodule(name))


def _remembered(model: nn.Module) -> dict[str, Tensor]:
    """Return running mean and variance of each layer, (2, channels)."""
    buffers = dict(model.named_buffers())
    return {
        name: torch.stack([buffers[f"{name}.running_mean"], buffers[f"{name}.running_var"]])
        for name in LAYERS
    }


def _population(
    model: nn.Module, dataset: Dataset, config: RunConfig, samples: int
) -> dict[str, Tensor]:
    images = list(population(dataset.train, samples, 500, config, epoch=1))
    inputs = [batch for batch, _ in images]
    with recalibrate(model, inputs, samples=None, layerwise=True, progress=False):
        return _remembered(model)


def _shown(test: Split, count: int) -> Split:
    """Draw as many images of each class, and mix them: batches must differ by chance."""
    pool = test.take(count, seed=1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    return dataclasses.replace(pool, images=pool.images[order], labels=pool.labels[order])


def _facts(
    config: RunConfig, dataset: Dataset, model: nn.Module, channels: list[int], samples: int
) -> dict[str, Any]:
    test = dataset.test
    return {
        "data": dataset.title,
        "licence": dataset.licence,
        "classes": list(dataset.classes),
        "mean": float(test.mean[0]) if test.mean else 0.0,
        "std": float(test.std[0]) if test.std else 1.0,
        "eps": [_layer(model, name).eps for name in LAYERS],
        "channels": channels,
        "seed": config.seed,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "train_images": config.train_images,
        "test_images": config.test_images,
        "population_images": samples,
        "rate": config.lr,
        "torch": torch.__version__.partition("+")[0],
    }


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED
    torch.set_num_threads(1)
    dataset = data.load("fashion-mnist", allow_subset=False)
    save(record(recorded_config(), dataset), target)
    print(target)
