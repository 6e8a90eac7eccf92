"""Run a model on images and score its output, for any task."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from normkit.lab import data
from normkit.lab.by_image import Images
from normkit.lab.config import RunConfig
from normkit.lab.placement import current_placement
from normkit.lab.tasks import Batches, task_of

__all__ = ["Batches", "Score", "in_order", "population", "score"]

EVALUATION_BATCH = 500


class Score(NamedTuple):
    """The result of an evaluation.

    Attributes:
        figure: of the task, such as accuracy: the mean over the images.
        loss: the mean loss, None where it is not finite.
        figures: of each test image, in their order (domain after domain); empty where their choice
            does not matter, None where they cannot be told apart.
        losses: likewise.
    """

    figure: float
    loss: float | None
    figures: Images = None
    losses: Images = None


@torch.no_grad()
def score(
    model: nn.Module, batches: Batches, config: RunConfig, order: Tensor | None = None
) -> Score:
    """Score the model on these images, in its current mode.

    Of several processes that train together, each works on some of the batches.

    Args:
        order: the place of each image of the batches among the test images; None for their order.
    """
    task, placement = task_of(config), current_placement()
    figure, loss, count = 0.0, 0.0, 0.0
    parts: list[tuple[int, list[float], list[float]]] = []
    for start, images, targets in placement.shard_batches(_numbered(batches)):
        outputs = model(images)
        each = task.figures(outputs, targets)
        losses = task.loss(outputs, targets, reduction="none")
        parts.append((start, each.tolist(), losses.tolist()))
        figure += each.sum().item()
        loss += task.loss(outputs, targets, reduction="sum").item()
        count += len(targets)
    figure, loss, count = placement.all_sum(figure, loss, count)
    by_image = np.zeros((2, int(count)))
    for start, *both in parts:
        by_image[:, start : start + len(both[0])] = both
    if placement.size > 1:  # of each image, all processes but one have a zero
        by_image = np.reshape(placement.all_sum(*by_image.ravel()), by_image.shape)
    if order is not None:
        by_image[:, order.numpy()] = by_image.copy()
    return Score(figure / count, loss / count if math.isfinite(loss) else None, *by_image)


def _numbered(batches: Batches) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the batches, each with the number of images before it."""
    start = 0
    for images, targets in batches:
        yield start, images, targets
        start += len(targets)


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
