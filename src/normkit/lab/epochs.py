"""Training batches of one epoch."""

from __future__ import annotations

import itertools

from normkit.lab import data
from normkit.lab.config import RunConfig
from normkit.lab.data.composition import Composition, compose
from normkit.lab.data.domains import DOMAINS, in_domain
from normkit.lab.domains import all_domains
from normkit.lab.tasks import Batches, task_of

__all__ = ["epoch_batches"]


def epoch_batches(config: RunConfig, split: data.Split, epoch: int) -> Batches:
    """Yield the batches of one epoch, as the run's description defines them.

    They depend on the description and on ``epoch`` only, so a run that resumes in the middle of
    an epoch gets the same ones again.

    Args:
        split: the training images of the run.
        epoch: counts from 0.
    """
    if config.composition:
        kind = Composition.of(config.composition)
        split = compose(split, kind, config.batch_size, seed=config.seed, epoch=epoch)

    def batches(of: data.Split) -> Batches:
        ordered = task_of(config).batches(
            config,
            of,
            config.batch_size,
            seed=config.seed,
            epoch=epoch,
            shuffle=not config.composition,
        )
        # With drop_last there is one step less than there are batches.
        return itertools.islice(ordered, config.steps_per_epoch)

    if not config.domains:
        return batches(split)
    domains = range(len(DOMAINS[config.domains]))
    return all_domains([batches(in_domain(split, config.domains, k)) for k in domains])
