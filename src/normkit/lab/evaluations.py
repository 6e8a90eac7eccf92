"""Evaluating a model on the test images, with the statistics it remembered or under a condition.

Like a probe, an evaluation leaves the model, its buffers, its modes and the random generators as
they were: a run that is evaluated under conditions gives the same numbers as one that is not.
Which conditions there are is told in :mod:`normkit.lab.conditions`; to add one, name it there and
write its function here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit.lab import data
from normkit.lab.conditions import Condition, named
from normkit.lab.config import RunConfig
from normkit.statistics.recalibrate import recalibrate
from normkit.statistics.switches import batch_statistics

__all__ = ["evaluate", "evaluate_under", "population"]

EVALUATION_BATCH = 500

Batches = Iterator[tuple[Tensor, Tensor]]
Score = tuple[float, float | None]


def evaluate(model: nn.Module, split: data.Split, config: RunConfig) -> Score:
    """Accuracy and mean loss in evaluation mode; the loss is None where it is not finite."""
    with _modes_kept(model):
        model.eval()
        return _score(model, _in_order(split, config))


def evaluate_under(
    conditions: Iterable[Condition],
    model: nn.Module,
    dataset: data.Dataset,
    config: RunConfig,
    epoch: int,
) -> dict[str, float | None]:
    """``test_accuracy@…`` and ``test_loss@…`` for each condition.

    A model with a weight that is not finite has no statistics; it counts as guessing, without a
    loss.

    Args:
        dataset: whose halves are those of the run: its training and its test images.
        epoch: that has just ended, from 0.
    """
    found: dict[str, float | None] = {}
    broken = not all(bool(torch.isfinite(weight).all()) for weight in model.parameters())
    for condition in conditions:
        name, *numbers = condition
        sizes = [int(number) for number in numbers]
        score: Score = (1 / len(dataset.classes), None)
        if not broken:
            with _modes_kept(model):
                score = _UNDER[str(name)](model, dataset, config, epoch, *sizes)
        found[named("test_accuracy", condition)], found[named("test_loss", condition)] = score
    return found


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


def _under_population(
    model: nn.Module,
    dataset: data.Dataset,
    config: RunConfig,
    epoch: int,
    samples: int,
    batch_size: int,
) -> Score:
    images = population(dataset.train, samples, batch_size, config, epoch)
    handle = recalibrate(model, images, samples=None, progress=False)
    try:
        model.eval()
        return _score(model, _in_order(dataset.test, config))
    finally:
        handle.undo()


def _under_batch(
    model: nn.Module, dataset: data.Dataset, config: RunConfig, epoch: int, batch_size: int
) -> Score:
    # Mixed: the test images come with the classes in turn, as `population` tells of the others.
    mixed = data.batches(
        dataset.test, batch_size, seed=config.seed, size=config.size, channels_last=True
    )
    with batch_statistics(model):
        return _score(model, mixed)


_UNDER: dict[str, Callable[..., Score]] = {
    "population": _under_population,
    "batch": _under_batch,
}


@contextlib.contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _in_order(split: data.Split, config: RunConfig) -> Batches:
    return data.batches(
        split, EVALUATION_BATCH, seed=0, shuffle=False, size=config.size, channels_last=True
    )


@torch.no_grad()
def _score(model: nn.Module, batches: Batches) -> Score:
    correct, loss, count = 0, 0.0, 0
    for images, labels in batches:
        scores = model(images)
        correct += int((scores.argmax(dim=1) == labels).sum())
        loss += F.cross_entropy(scores, labels, reduction="sum").item()
        count += len(labels)
    return correct / count, loss / count if math.isfinite(loss) else None
