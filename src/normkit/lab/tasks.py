"""Tasks of a network: to classify images, or to denoise them.

A *task* turns data into batches of pairs (input, target); it defines the loss of a step, the
*figure* that is counted along an epoch and measured on the test images, and the chance level.
Training and evaluation use it, and know no task by name. To add one, write its functions and put it
in ``TASKS``.

Every number that a task draws depends on the seed, the epoch and the place in the epoch only: a
run that resumes in the middle of an epoch gets the same ones again, on any device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from normkit.lab import data
from normkit.lab.config import RunConfig
from normkit.lab.denoising import handed_back, noise_level, noisy, psnr, psnr_loss

__all__ = ["STUCK", "TASKS", "Batches", "Task", "task_of"]

Batches = Iterator[tuple[Tensor, Tensor]]
"""Pairs (input, target)."""

STUCK = 0.99
"""Share of chance level: a run has learned nothing if the error of its last epoch is above it."""


class Loss(Protocol):
    def __call__(self, outputs: Tensor, targets: Tensor, /, *, reduction: str) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class Task:
    """Task of learning.

    Attributes:
        output: of the networks for it, see :data:`normkit.lab.models.OUTPUTS`.
        figure: name of the measure apart from the loss; metrics are called ``test_{figure}`` and
            ``epoch_train_{figure}``. Higher is better.
        shown: format of that figure for people.
        batches: one epoch of them, called as
            ``batches(config, split, batch_size, seed=, epoch=, shuffle=)``.
        loss: with ``reduction`` "mean" or "sum" over the images of a batch, or "none".
        figures: the figure of each image of a batch.
        chance_loss: called as ``chance_loss(config, classes)``; a run whose mean training loss is
            above it has learned nothing.
        chance_figures: called as ``chance_figures(classes, batches)``; the chance level of each
            image of these batches, a single one where all are alike.
    """

    output: Literal["logits", "images"]
    figure: str
    shown: str
    batches: Callable[..., Batches]
    loss: Loss
    figures: Callable[[Tensor, Tensor], Tensor]
    chance_loss: Callable[[RunConfig, int], float]
    chance_figures: Callable[[int, Batches], Tensor]

    def count(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the figure of a batch, summed over its images."""
        return self.figures(outputs, targets).sum().item()


def _labelled(config: RunConfig, split: data.Split, batch_size: int, **order: Any) -> Batches:
    return data.batches(split, batch_size, size=config.size, channels_last=True, **order)


def _right(scores: Tensor, labels: Tensor) -> Tensor:
    return scores.argmax(dim=1) == labels


def _noisy(config: RunConfig, split: data.Split, batch_size: int, **order: Any) -> Batches:
    # On the scale where black is 0 and white is 1, which the noise and PSNR refer to.
    channels = split.images.shape[1]
    moments = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    clean = _labelled(config, split, batch_size, **moments, **order)
    return noisy(clean, config.noise, config.noise_spread, **order)


TASKS: dict[str, Task] = {
    "classification": Task(
        output="logits",
        figure="accuracy",
        shown="test accuracy {:.4f}",
        batches=_labelled,
        loss=F.cross_entropy,
        figures=_right,
        chance_loss=lambda _, classes: STUCK * math.log(classes),
        chance_figures=lambda classes, _: torch.tensor([1 / classes], dtype=torch.float64),
    ),
    "denoising": Task(
        output="images",
        figure="psnr",
        shown="test PSNR {:.2f} dB",
        batches=_noisy,
        loss=psnr_loss,
        figures=psnr,
        # The error of the noisy image is the variance of the noise.
        chance_loss=lambda config, _: (
            10 * math.log10(STUCK) + noise_level(config.noise, config.noise_spread)
        ),
        chance_figures=lambda _, batches: handed_back(batches),
    ),
}
"""Tasks by the name that a run's description uses."""


def task_of(config: RunConfig) -> Task:
    """Return the task of a run."""
    return TASKS[config.task]
