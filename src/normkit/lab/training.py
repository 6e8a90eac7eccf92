"""One training, from a description to measurements.

How the arms of a comparison are paired is told in :mod:`normkit.lab.building`: two runs with one
seed see the same images in the same order and start from the same weights.

What is learned, and which *figure* is measured (accuracy, for classification), is the run's task:
see :mod:`normkit.lab.tasks`.

A run that breaks is a result, not an error. It *diverged* if a training loss is not finite (the
run ends there, and its remaining epochs count with the figure of guessing, 1 / classes for
accuracy) or if the mean training loss of its last epoch is no better than 99 % of that of
guessing, ln(classes) for classification (the run is trained to the end and its figures are those
measured; the step noted is the last one recorded with a loss better than that).

A run can stop after any step and go on from the bytes of its last checkpoint to the same last
bit, on the same machine with the same number of threads, on a CPU. Elsewhere
(:mod:`normkit.lab.placement`) it goes on from them too, to results that differ by rounding.
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
from torch import Tensor, nn

from normkit.errors import NonFiniteError
from normkit.lab import data
from normkit.lab.building import build_model, build_optimizer
from normkit.lab.checkpoints import Progress, restore, state
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.domains import forward
from normkit.lab.epochs import epoch_batches
from normkit.lab.evaluations import evaluate, evaluate_under, guess
from normkit.lab.freezing import freeze_statistics, is_frozen_epoch
from normkit.lab.models.forms import quickest
from normkit.lab.placement import Placement, current_placement, use_placement
from normkit.lab.probes import Reading, probe
from normkit.lab.schedules import set_rate
from normkit.lab.tasks import Task, task_of

__all__ = ["Log", "Outcome", "train"]

CHECKPOINT_SHARE = 0.05
"""At most this share of the time goes into checkpoints. For small networks that is one at nearly
every step; a network of many megabytes gets one every few seconds."""

CHECKPOINT_SECONDS = 0.0


class Log(Protocol):
    """Where a training writes; a lease of the store is one."""

    def record(
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
    place: Placement | None = None,
) -> Outcome:
    """Train one run and write what it measures to ``log``.

    By step: ``train_loss``, the mean over the last ``loss_every`` steps, and what the probes read.
    By epoch: ``epoch_train_loss`` and ``epoch_train_accuracy`` (or what else the task's figure is),
    both as the model saw its batches while it learned from them, ``test_accuracy``, ``test_loss``,
    the same under each of the run's conditions, and ``epoch_seconds``, training and first
    evaluation.

    Args:
        resume: the bytes of a checkpoint of this very run, to go on from.
        stopping: asked after each step; once true, the run writes a checkpoint and returns.
        checkpoint_seconds: at least so long between two checkpoints; longer where writing them
            takes more than ``CHECKPOINT_SHARE`` of the time.
        place: where; on the CPU by this process if None. Of several processes together all call
            this with the same arguments, but for ``log`` and ``stopping``: the first one's count.
    """
    with use_placement(place or current_placement()):
        return _train(config, dataset, log, resume, stopping, checkpoint_seconds)


def _train(
    config: RunConfig,
    dataset: data.Dataset,
    log: Log,
    resume: bytes | None,
    asked: Callable[[], bool],
    checkpoint_seconds: float,
) -> Outcome:
    place = current_placement()
    classes = len(dataset.classes)
    train_split = dataset.train.take(config.train_images, seed=config.seed)
    test_split = dataset.test.take(config.test_images, seed=0)
    dataset = dataclasses.replace(dataset, train=train_split, test=test_split)
    model = build_model(config, in_channels=train_split.images.shape[1], classes=classes)
    if not config.probes:  # they look at the layers as they stand
        quickest(model)
    learner = place.prepare_model(model)
    optimizer = build_optimizer(config, model)
    at = Progress()
    if resume is not None:
        at = restore(resume, model, optimizer, place.device)
    model.train()
    task = task_of(config)
    nothing_learned = task.learned(config, classes)
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
        if place.rank == 0:
            log.checkpoint(at.step, state(model, optimizer, at, place.device))
        saved = time.perf_counter()
        cost = saved - begin

    def due() -> bool:
        return time.perf_counter() - saved >= max(checkpoint_seconds, cost / CHECKPOINT_SHARE)

    def stopping() -> bool:
        return place.broadcast_flag(asked())

    last_loss, held = 0.0, False
    while at.step < config.steps:
        epoch, first = divmod(at.step, config.steps_per_epoch)
        if is_frozen_epoch(config, epoch) and not held:
            try:
                freeze_statistics(model, train_split, config, at.step)
            except NonFiniteError:
                elapse()
                _give_up(config, log, epoch, dataset)
                return Outcome(at.step, at.seconds, diverged_step=at.step)
            held = True
        batches = epoch_batches(config, train_split, epoch)
        for images, targets in itertools.islice(batches, first, None):
            set_rate(optimizer, config, at.step)
            loss, counted, reading = _step(
                config, task, learner, optimizer, images, targets, at.step + 1
            )
            at.step += 1
            if not math.isfinite(loss):
                elapse()
                _give_up(config, log, epoch, dataset)
                return Outcome(at.step, at.seconds, diverged_step=at.step)
            at.epoch_loss += loss * len(targets)
            at.epoch_images += len(targets)
            at.epoch_correct += counted
            at.epoch_judged += len(targets)
            at.recent_loss += loss
            at.recent_steps += 1
            metrics, vectors = reading.scalars, reading.vectors
            if at.step % config.loss_every == 0 or at.step == config.steps:
                mean = at.recent_loss / at.recent_steps
                metrics["train_loss"] = mean
                at.recent_loss, at.recent_steps = 0.0, 0
                if mean <= nothing_learned:
                    at.learning_step = at.step
            if metrics:
                log.record(at.step, epoch, metrics, vectors)
            if at.step % config.steps_per_epoch == 0:
                break
            if stopping():
                save()
                return Outcome(at.step, at.seconds, stopped=True)
            if due():
                save()
        with place.without_sync(model):
            figure, test_loss = evaluate(model, test_split, config)
            elapse()
            under = evaluate_under(config.conditions(epoch), model, dataset, config, epoch)
        last_loss = at.epoch_loss / at.epoch_images
        log.record(
            at.step,
            epoch,
            {
                "epoch_train_loss": last_loss,
                f"epoch_train_{task.figure}": at.epoch_figure,
                f"test_{task.figure}": figure,
                "test_loss": test_loss,
                "epoch_seconds": at.epoch_seconds,
                **under,
            },
        )
        elapse()
        at.end_epoch()
        if at.step < config.steps:
            stop = stopping()
            if stop or due():
                save()
            if stop:
                return Outcome(at.step, at.seconds, stopped=True)
    stuck = last_loss > nothing_learned
    return Outcome(at.step, at.seconds, diverged_step=at.learning_step if stuck else None)


def _step(
    config: RunConfig,
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    number: int,
) -> tuple[float, float, Reading]:
    """One optimizer step, watched by the probes whose turn it is: loss, and the figure, summed.

    Of several processes each takes its part; both numbers are those of the whole batch.
    """
    place, total = current_placement(), Reading()
    optimizer.zero_grad(set_to_none=True)
    with contextlib.ExitStack() as stack:
        readings = [
            stack.enter_context(probe(name, model))
            for name, every in config.probes
            if number % every == 0 or number == 1
        ]
        whole = len(targets)
        images, targets = place.shard_batch(images, targets)
        outputs = forward(config, model, images)
        if place.size == 1:
            loss = task.loss(outputs, targets, reduction="mean")
        else:
            # Gradients are averaged over processes, whatever their part of the batch is.
            loss = task.loss(outputs, targets, reduction="sum") * (place.size / whole)
        loss.backward()
    for reading in readings:
        total.scalars.update(reading.scalars)
        total.vectors.update(reading.vectors)
    value, counted = place.all_sum(loss.item() / place.size, task.count(outputs.detach(), targets))
    if math.isfinite(value):
        optimizer.step()
    return value, counted, total


def _give_up(config: RunConfig, log: Log, first: int, dataset: data.Dataset) -> None:
    """Write the epochs that a broken run did not finish: no loss, the figure of guessing."""
    figure, guessed = task_of(config).figure, guess(dataset, config)
    for epoch in range(first, config.epochs):
        found: dict[str, float | None] = {"epoch_train_loss": None, f"epoch_train_{figure}": None}
        for name in ("{}", *(named("{}", condition) for condition in config.conditions(epoch))):
            found[name.format(f"test_{figure}")] = guessed
            found[name.format("test_loss")] = None
        log.record((epoch + 1) * config.steps_per_epoch, epoch, found)
