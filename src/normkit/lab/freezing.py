"""Train the last epochs with population statistics in place of the batch's.

When that phase begins, the statistics for the current weights are estimated from training images
and frozen: the layers normalize with them in training too, while all weights, including γ and β,
keep learning.

Source: Wu & Johnson 2021, arXiv 2105.07576, section 4.3 (FrozenBN for the last epochs).
"""

from __future__ import annotations

from torch import nn

from normkit.lab import data
from normkit.lab.config import RunConfig
from normkit.lab.evaluations import population
from normkit.lab.placement import current_placement
from normkit.statistics.recalibrate import recalibrate
from normkit.surgery.freeze import freeze

__all__ = ["SAMPLES", "freeze_statistics", "is_frozen_epoch"]

SAMPLES = 10_000
"""At most so many training images are taken for the estimate, in batches of the training's size."""


def is_frozen_epoch(config: RunConfig, epoch: int) -> bool:
    """Return True if this epoch, from 0, is one of the last, with frozen statistics."""
    return epoch >= config.epochs - config.frozen_epochs


def freeze_statistics(model: nn.Module, train: data.Split, config: RunConfig, done: int) -> None:
    """Freeze the statistics of a model that has trained for ``done`` steps.

    At the first step of the phase the statistics are estimated; a model resumed from a checkpoint
    within it has them.

    Raises:
        NonFiniteError: the model has weights or activations that are not finite.
    """
    begin = config.epochs - config.frozen_epochs
    if done == begin * config.steps_per_epoch:
        samples = min(SAMPLES, config.train_images)
        # No rest: a last batch of a single image has no statistics in a dense layer.
        samples -= samples % min(config.batch_size, samples)
        images = population(train, samples, config.batch_size, config, begin)
        placement = current_placement()
        with placement.without_sync(model):
            recalibrate(
                model,
                placement.shard_batches(images),
                samples=None,
                # One pass whatever its bias: what small batches cost is part of the measurement.
                layerwise=False,
                progress=False,
                process_group=placement.process_group,
            )
    freeze(model, affine=False)
