"""Evaluate a model on the test images, with running statistics or under a condition.

Like a probe, an evaluation restores the model, its buffers, its modes and the random generators: a
run evaluated under conditions gives the same numbers as one without. :mod:`normkit.lab.conditions`
lists the conditions; to add one, name it there and write its function here. One that takes the test
images in another order than theirs gives :func:`normkit.lab.scoring.score` that order.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import nn

from normkit.errors import NonFiniteError
from normkit.lab import data
from normkit.lab.by_image import to_vectors
from normkit.lab.conditions import Condition, named
from normkit.lab.config import RunConfig
from normkit.lab.data.batches import order
from normkit.lab.data.composition import Composition, compose
from normkit.lab.data.corruptions import corrupted
from normkit.lab.domains import evaluate_domains, under_shared, under_specific
from normkit.lab.placement import current_placement
from normkit.lab.scoring import Score, in_order, population, score
from normkit.lab.tasks import task_of
from normkit.statistics.contexts import batch_statistics
from normkit.statistics.layers.preserve import preserve_modes
from normkit.statistics.recalibrate import recalibrate

__all__ = ["chance_score", "evaluate", "evaluate_under", "population"]


def evaluate(model: nn.Module, split: data.Split, config: RunConfig) -> Score:
    """Score the test images in evaluation mode."""
    with preserve_modes(model):
        if config.domains:
            return evaluate_domains(model, split, config)
        model.eval()
        return score(model, in_order(split, config), config)


def chance_score(dataset: data.Dataset, config: RunConfig) -> Score:
    """Return the score of a broken model: the figure is at chance level, and there is no loss."""
    images = task_of(config).chance_figures(len(dataset.classes), in_order(dataset.test, config))
    return Score(images.mean().item(), None, np.array(images.tolist() if len(images) > 1 else []))


def evaluate_under(
    conditions: Iterable[Condition],
    model: nn.Module,
    dataset: data.Dataset,
    config: RunConfig,
    epoch: int,
) -> tuple[dict[str, float | None], dict[str, Sequence[float]]]:
    """Measure ``test_accuracy@…`` (or the task's other figure) and ``test_loss@…`` per condition.

    Returns the metrics, and those image by image that :mod:`normkit.lab.by_image` lists.

    A model with non-finite weights or overflowing activations has no statistics; it counts at
    chance level, without a loss.

    Args:
        dataset: whose halves are those of the run: its training and its test images.
        epoch: that has just ended, from 0.
    """
    figure = f"test_{task_of(config).figure}"
    metrics: dict[str, float | None] = {}
    vectors: dict[str, Sequence[float]] = {}
    broken = not all(bool(torch.isfinite(weight).all()) for weight in model.parameters())
    for condition in conditions:
        name, *numbers = condition
        sizes = [int(number) for number in numbers]
        result: Score | None = None
        if not broken:
            with preserve_modes(model), contextlib.suppress(NonFiniteError):
                result = _UNDER[str(name)](model, dataset, config, epoch, *sizes)
        if result is None:
            result = chance_score(dataset, config)
        metrics[named(figure, condition)] = result.figure
        metrics[named("test_loss", condition)] = result.loss
        vectors |= to_vectors(config, condition, result.figures, result.losses)
    return metrics, vectors


def _under_population(
    model: nn.Module,
    dataset: data.Dataset,
    config: RunConfig,
    epoch: int,
    samples: int,
    batch_size: int,
) -> Score:
    images = population(dataset.train, samples, batch_size, config, epoch)
    placement = current_placement()
    handle = recalibrate(
        model,
        placement.shard_batches(images),
        samples=None,
        # One pass whatever its bias: what small batches cost is part of the measurement.
        layerwise=False,
        progress=False,
        process_group=placement.process_group,
    )
    try:
        model.eval()
        return score(model, in_order(dataset.test, config), config)
    finally:
        handle.undo()


def _under_batch(
    model: nn.Module, dataset: data.Dataset, config: RunConfig, epoch: int, batch_size: int
) -> Score:
    # Mixed: the test images come with the classes in turn, as `population` tells of the others.
    mixed = current_placement().to_device(
        task_of(config).batches(config, dataset.test, batch_size, seed=config.seed)
    )
    with batch_statistics(model):
        return score(model, mixed, config, order(len(dataset.test), config.seed, epoch=0))


def _under_composed(
    model: nn.Module,
    dataset: data.Dataset,
    config: RunConfig,
    epoch: int,
    group: int,
    labels: int,
) -> Score:
    kind = Composition(group, labels)
    composed = compose(dataset.test, kind, group, seed=config.seed, epoch=0)
    with batch_statistics(model):
        # Some images come twice.
        return score(model, in_order(composed, config, group), config)._replace(
            figures=None, losses=None
        )


def _under_train(
    model: nn.Module, dataset: data.Dataset, config: RunConfig, epoch: int, images: int
) -> Score:
    model.eval()
    result = score(model, in_order(dataset.train.take(images, seed=config.seed), config), config)
    return result._replace(figures=np.empty(0), losses=np.empty(0))


def _as_it_is(model: nn.Module, dataset: data.Dataset, config: RunConfig, epoch: int) -> Score:
    model.eval()
    return score(model, in_order(dataset.test, config), config)


def _under_sorted(
    model: nn.Module, dataset: data.Dataset, config: RunConfig, epoch: int, batch_size: int
) -> Score:
    split = dataset.test
    by_label = split.labels.argsort(stable=True)
    stream = dataclasses.replace(
        split, images=split.images[by_label], labels=split.labels[by_label]
    )
    with batch_statistics(model):
        return score(model, in_order(stream, config, batch_size), config, by_label)


def _on_corrupted(under: Callable[..., Score]) -> Callable[..., Score]:
    """Evaluate as ``under`` does, on corrupted test images."""

    def evaluate(
        model: nn.Module,
        dataset: data.Dataset,
        config: RunConfig,
        epoch: int,
        kind: int,
        severity: int,
        *sizes: int,
    ) -> Score:
        changed = dataclasses.replace(dataset, test=corrupted(dataset.test, kind, severity))
        return under(model, changed, config, epoch, *sizes)

    return evaluate


_UNDER: dict[str, Callable[..., Score]] = {
    "population": _under_population,
    "batch": _under_batch,
    "composed": _under_composed,
    "train": _under_train,
    "corrupted": _on_corrupted(_as_it_is),
    "corrupted-batch": _on_corrupted(_under_batch),
    "corrupted-sorted": _on_corrupted(_under_sorted),
    "domains-shared": under_shared,
    "domains-specific": under_specific,
}
