"""Run a model on images and score its output, for any task."""

from __future__ import annotations

import math

import torch
from torch import nn

from normkit.lab import data
from normkit.lab.config import RunConfig
from normkit.lab.placement import current_placement
from normkit.lab.tasks import Batches, task_of

__all__ = ["Batches", "Score", "in_order", "population", "score"]

EVALUATION_BATCH = 500

Score = tuple[float, float | None]
"""The figure of the task, such as accuracy, and the mean loss, None where it is not finite."""


@torch.no_grad()
def score(model: nn.Module, batches: Batches, config: RunConfig) -> Score:
    """Return the figure of the run's task and the mean loss of the model, in its current mode.

    Of several processes that train together, each works on some of the batches.
    """
    task = task_of(config)
    figure, loss, count = 0.0, 0.0, 0.0
    for images, targets in current_placement().shard_batches(batches):
        outputs = model(images)
        figure += task.count(outputs, targets)
        loss += task.loss(outputs, targets, reduction="sum").item()
        count += len(targets)
    figure, loss, count = current_placement().all_sum(figure, loss, count)
    return figure / count, loss / count if math.isfinite(loss) else None


def in_order(split: data.Split, config: RunConfig, batch_size: int = EVALUATION_BATCH) -> Batches:
    """Yield the images in the split's order."""
    batches = task_of(config).batches(config, split, batch_size, seed=0, shuffle=False)
    return current_placement().to_device(batches)


def population(
    split: data.Split, samples: int, batch_size: int, config: RunConfig, epoch: int
) -> Batches:
    """Yield training images to estimate statistics from, drawn without replacement by the seed.

    A split of its own order would not do: it has the classes in turn, and small batches of it
    would be better mixed than those of chance.
    """
    # Beyond the last epoch of the training, so that no order is one that the model has seen.
    drawn = task_of(config).batches(
        config, split, batch_size, seed=config.seed, epoch=config.epochs + epoch
    )
    for images, targets in current_placement().to_device(drawn):
        if samples < 1:
            return
        yield images[:samples], targets[:samples]
        samples -= len(targets)
