"""Running a model on images and counting what it gets right."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit.lab import data
from normkit.lab.config import RunConfig

__all__ = ["Batches", "Score", "in_order", "modes_kept", "population", "score"]

EVALUATION_BATCH = 500

Batches = Iterator[tuple[Tensor, Tensor]]
Score = tuple[float, float | None]
"""Accuracy and mean loss; the loss is None where it is not finite."""


@torch.no_grad()
def score(model: nn.Module, batches: Batches) -> Score:
    """Accuracy and mean loss of the model, in whatever mode it is."""
    correct, loss, count = 0, 0.0, 0
    for images, labels in batches:
        scores = model(images)
        correct += int((scores.argmax(dim=1) == labels).sum())
        loss += F.cross_entropy(scores, labels, reduction="sum").item()
        count += len(labels)
    return correct / count, loss / count if math.isfinite(loss) else None


def in_order(split: data.Split, config: RunConfig, batch_size: int = EVALUATION_BATCH) -> Batches:
    """The images as they come."""
    return data.batches(
        split, batch_size, seed=0, shuffle=False, size=config.size, channels_last=True
    )


def population(
    split: data.Split, samples: int, batch_size: int, config: RunConfig, epoch: int
) -> Batches:
    """Training images to estimate statistics from: drawn anew, without replacement, by the seed.

    A split of its own order would not do: it has the classes in turn, and small batches of it
    would be better mixed than those of chance.
    """
    # Beyond the last epoch of the training, so that no order is one that the model has seen.
    drawn = data.batches(
        split,
        batch_size,
        seed=config.seed,
        epoch=config.epochs + epoch,
        size=config.size,
        channels_last=True,
    )
    for images, labels in drawn:
        if samples < 1:
            return
        yield images[:samples], labels[:samples]
        samples -= len(labels)


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Whatever the modes of its modules were, they are so again at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
