"""Train and evaluate on several domains at once, in three phases.

A run with ``domains`` sees every image in each of them. In each phase the statistics of a
normalizer are either *shared* by the domains or *specific* to each (Wu & Johnson 2021, arXiv
2105.07576, section 5):

* SGD: a model of :class:`normkit.DomainBatchNorm2d` is given each domain's part of the batch by
  itself; any other model the whole batch, so that batch normalization has one mean for both;
* population: the statistics of the final weights are estimated from batches as SGD has them, and
  then kept by domain or merged into one set; or, for a model that knows no domains, from batches
  of all domains or from those of one;
* test: each domain's images, with the statistics that the phase before left for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normkit.lab import data
from normkit.lab.by_image import Images
from normkit.lab.config import RunConfig
from normkit.lab.data.domains import DOMAINS, in_domain
from normkit.lab.scoring import Score, in_order, population, score
from normkit.lab.tasks import Batches
from normkit.nn.domainbatchnorm import Domains
from normkit.statistics.contexts import use_domain
from normkit.statistics.recalibrate import recalibrate

__all__ = [
    "all_domains",
    "as_domain",
    "evaluate_domains",
    "forward",
    "under_shared",
    "under_specific",
]


def all_domains(parts: list[Batches]) -> Batches:
    """Concatenate the batches of each domain, one domain after another."""
    for each in zip(*parts, strict=True):
        yield torch.cat([images for images, _ in each]), torch.cat([labels for _, labels in each])


def forward(config: RunConfig, model: nn.Module, images: Tensor) -> Tensor:
    """Compute the scores of a training batch, in the SGD phase of the run."""
    if not (config.domains and _knows(model)):
        scores: Tensor = model(images)
        return scores
    parts = images.chunk(len(DOMAINS[config.domains]))
    return torch.cat([_in(model, domain, part) for domain, part in enumerate(parts)])


def evaluate_domains(model: nn.Module, split: data.Split, config: RunConfig) -> Score:
    """Average over the domains, in evaluation mode, with the running statistics."""
    model.eval()
    return _mean([_test(model, split, config, domain) for domain in _all(config)])


def under_shared(
    model: nn.Module,
    dataset: data.Dataset,
    config: RunConfig,
    epoch: int,
    samples: int,
    batch_size: int,
) -> Score:
    """Evaluate with population statistics shared by all domains, of ``samples`` images in each."""
    images = _population(dataset, config, epoch, samples, batch_size)
    with _recalibrated(model, config, all_domains(images)):
        for layer in _layers(model):
            _merge(layer)
        return evaluate_domains(model, dataset.test, config)


def under_specific(
    model: nn.Module,
    dataset: data.Dataset,
    config: RunConfig,
    epoch: int,
    samples: int,
    batch_size: int,
) -> Score:
    """Evaluate with the population statistics of each domain's own images."""
    images = _population(dataset, config, epoch, samples, batch_size)
    if _knows(model):
        with _recalibrated(model, config, all_domains(images)):
            return evaluate_domains(model, dataset.test, config)
    scores = []
    for domain in _all(config):
        with _recalibrated(model, config, images[domain]):
            model.eval()
            scores.append(_test(model, dataset.test, config, domain))
    return _mean(scores)


def _all(config: RunConfig) -> range:
    return range(len(DOMAINS[config.domains]))


def _layers(model: nn.Module) -> list[Domains]:
    return [module for module in model.modules() if isinstance(module, Domains)]


def _knows(model: nn.Module) -> bool:
    return bool(_layers(model))


def as_domain(model: nn.Module, domain: int) -> contextlib.AbstractContextManager[Any]:
    """Select a domain within a ``with`` block; of a model that knows none, nothing."""
    return use_domain(model, domain) if _knows(model) else contextlib.nullcontext()


def _in(model: nn.Module, domain: int, images: Tensor) -> Tensor:
    with use_domain(model, domain):
        scores: Tensor = model(images)
    return scores


def _test(model: nn.Module, split: data.Split, config: RunConfig, domain: int) -> Score:
    images = in_order(in_domain(split, config.domains, domain), config)
    with as_domain(model, domain):
        return score(model, images, config)


def _mean(scores: list[Score]) -> Score:
    losses = [each.loss for each in scores if each.loss is not None]
    return Score(
        fmean(each.figure for each in scores),
        fmean(losses) if len(losses) == len(scores) else None,
        _joined([each.figures for each in scores]),
        _joined([each.losses for each in scores]),
    )


def _joined(parts: list[Images]) -> Images:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def _population(
    dataset: data.Dataset, config: RunConfig, epoch: int, samples: int, batch_size: int
) -> list[Batches]:
    return [
        population(
            in_domain(dataset.train, config.domains, domain), samples, batch_size, config, epoch
        )
        for domain in _all(config)
    ]


@contextlib.contextmanager
def _recalibrated(model: nn.Module, config: RunConfig, batches: Batches) -> Iterator[None]:
    def run(model: nn.Module, batch: Any) -> None:
        forward(config, model, batch[0])

    # Such a run has a process to itself, also where there are others.
    handle = recalibrate(
        model,
        batches,
        samples=None,
        forward=run,
        # One pass, as before: batches of one domain each differ far more than their size explains.
        layerwise=False,
        progress=False,
        process_group=False,
    )
    try:
        yield
    finally:
        handle.undo()


def _merge(layer: Domains) -> None:
    """Merge the statistics of all domains, which have equally many images, into one set."""
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None and var is not None
    # Total variance: that within the domains, and that between them.
    between = mean.var(0, correction=0)
    var.copy_((var.mean(0) + between).expand_as(var))
    mean.copy_(mean.mean(0).expand_as(mean))
