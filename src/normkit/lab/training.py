"""One training, from a description to measurements.

How the arms of a comparison are paired is told in :mod:`normkit.lab.building`: two runs with one
seed see the same images in the same order and start from the same weights.

A run that breaks is a result, not an error. It *diverged* if a training loss is not finite (the
run ends there, and its remaining epochs count with the accuracy of guessing, 1 / classes) or if
the mean training loss of its last epoch is no better than 99 % of that of guessing, ln(classes)
(the run is trained to the end and its accuracies are those measured; the step noted is the last
one recorded with a loss better than that).

A run can stop after any step and go on from the bytes of its last checkpoint to the same last
bit, on the same machine with the same number of threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit.lab import data
from normkit.lab.building import build_model, build_optimizer
from normkit.lab.checkpoints import Progress, restore, state
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.domains import forward
from normkit.lab.epochs import epoch_batches
from normkit.lab.evaluations import evaluate, evaluate_under
from normkit.lab.freezing import hold_statistics, is_frozen
from normkit.lab.probes import Reading, probe
from normkit.lab.schedules import set_rate

__all__ = ["Log", "Outcome", "train"]

STUCK = 0.99
"""A last epoch whose loss is above this share of ln(classes) has learned nothing."""

CHECKPOINT_SHARE = 0.05
"""At most this share of the time goes into checkpoints. For small networks that is one at nearly
every step; a network of many megabytes gets one every few seconds."""

CHECKPOINT_SECONDS = 0.0


class Log(Protocol):
    """Where a training writes; a lease of the store is one."""

    def measured(
        self,
        step: int,
        epoch: int,
        metrics: Mapping[str, float | None],
        vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> None: ...

    def checkpoint(self, step: int, state: bytes) -> None: ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a training ended. ``stopped`` means that it was asked to and can go on."""

    step: int
    seconds: float
    diverged_step: int | None = None
    stopped: bool = False


def train(
    config: RunConfig,
    dataset: data.Dataset,
    log: Log,
    *,
    resume: bytes | None = None,
    stopping: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Outcome:
    """Train one run and write what it measures to ``log``.

    By step: ``train_loss``, the mean over the last ``loss_every`` steps, and what the probes read.
    By epoch: ``epoch_train_loss`` and ``epoch_train_accuracy``, both as the model saw its batches
    while it learned from them, ``test_accuracy``, ``test_loss``, the same under each of the run's
    conditions, and ``epoch_seconds``, training and first evaluation.

    Args:
        resume: the bytes of a checkpoint of this very run, to go on from.
        stopping: asked after each step; once true, the run writes a checkpoint and returns.
        checkpoint_seconds: at least so long between two checkpoints; longer where writing them
            takes more than ``CHECKPOINT_SHARE`` of the time.
    """
    classes = len(dataset.classes)
    train_split = dataset.train.take(config.train_images, seed=config.seed)
    test_split = dataset.test.take(config.test_images, seed=0)
    dataset = dataclasses.replace(dataset, train=train_split, test=test_split)
    model = build_model(config, in_channels=train_split.images.shape[1], classes=classes)
    optimizer = build_optimizer(config, model)
    at = Progress()
    if resume is not None:
        at = restore(resume, model, optimizer)
    model.train()
    chance = math.log(classes)
    saved = clock = time.perf_counter()

    def elapse() -> None:
        nonlocal clock
        now = time.perf_counter()
        at.seconds += now - clock
        at.epoch_seconds += now - clock
        clock = now

    cost = 0.0

    def save() -> None:
        nonlocal saved, cost
        elapse()
        begin = time.perf_counter()
        log.checkpoint(at.step, state(model, optimizer, at))
        saved = time.perf_counter()
        cost = saved - begin

    def due() -> bool:
        return time.perf_counter() - saved >= max(checkpoint_seconds, cost / CHECKPOINT_SHARE)

    last_loss, held = 0.0, False
    while at.step < config.steps:
        epoch, first = divmod(at.step, config.steps_per_epoch)
        if is_frozen(config, epoch) and not held:
            hold_statistics(model, train_split, config, at.step)
            held = True
        batches = epoch_batches(config, train_split, epoch)
        for images, labels in itertools.islice(batches, first, None):
            set_rate(optimizer, config, at.step)
            loss, correct, reading = _step(config, model, optimizer, images, labels, at.step + 1)
            at.step += 1
            if not math.isfinite(loss):
                elapse()
                _give_up(config, log, at, classes)
                return Outcome(at.step, at.seconds, diverged_step=at.step)
            at.epoch_loss += loss * len(labels)
            at.epoch_images += len(labels)
            at.epoch_correct += correct
            at.epoch_judged += len(labels)
            at.recent_loss += loss
            at.recent_steps += 1
            metrics, vectors = reading.scalars, reading.vectors
            if at.step % config.loss_every == 0 or at.step == config.steps:
                mean = at.recent_loss / at.recent_steps
                metrics["train_loss"] = mean
                at.recent_loss, at.recent_steps = 0.0, 0
                if mean <= STUCK * chance:
                    at.learning_step = at.step
            if metrics:
                log.measured(at.step, epoch, metrics, vectors)
            if at.step % config.steps_per_epoch == 0:
                break
            if stopping():
                save()
                return Outcome(at.step, at.seconds, stopped=True)
            if due():
                save()
        accuracy, test_loss = evaluate(model, test_split, config)
        elapse()
        last_loss = at.epoch_loss / at.epoch_images
        log.measured(
            at.step,
            epoch,
            {
                "epoch_train_loss": last_loss,
                "epoch_train_accuracy": at.epoch_accuracy,
                "test_accuracy": accuracy,
                "test_loss": test_loss,
                "epoch_seconds": at.epoch_seconds,
                **evaluate_under(config.conditions(epoch), model, dataset, config, epoch),
            },
        )
        elapse()
        at.end_epoch()
        if at.step < config.steps and (stopping() or due()):
            save()
            if stopping():
                return Outcome(at.step, at.seconds, stopped=True)
    stuck = last_loss > STUCK * chance
    return Outcome(at.step, at.seconds, diverged_step=at.learning_step if stuck else None)


def _step(
    config: RunConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    number: int,
) -> tuple[float, int, Reading]:
    """One optimizer step, watched by the probes whose turn it is: loss, how many were right."""
    total = Reading()
    optimizer.zero_grad(set_to_none=True)
    with contextlib.ExitStack() as stack:
        readings = [
            stack.enter_context(probe(name, model))
            for name, every in config.probes
            if number % every == 0 or number == 1
        ]
        scores = forward(config, model, images)
        loss = F.cross_entropy(scores, labels)
        loss.backward()
    for reading in readings:
        total.scalars.update(reading.scalars)
        total.vectors.update(reading.vectors)
    value = loss.item()
    if math.isfinite(value):
        optimizer.step()
    return value, int((scores.detach().argmax(dim=1) == labels).sum()), total


def _give_up(config: RunConfig, log: Log, at: Progress, classes: int) -> None:
    """Write the epochs that a broken run did not finish: no loss, the accuracy of guessing."""
    for epoch in range((at.step - 1) // config.steps_per_epoch, config.epochs):
        found: dict[str, float | None] = {"epoch_train_loss": None, "epoch_train_accuracy": None}
        for name in ("{}", *(named("{}", condition) for condition in config.conditions(epoch))):
            found[name.format("test_accuracy")] = 1 / classes
            found[name.format("test_loss")] = None
        log.measured((epoch + 1) * config.steps_per_epoch, epoch, found)
