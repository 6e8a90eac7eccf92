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
import io
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
from normkit.lab.config import RunConfig
from normkit.lab.probes import Reading, probe

__all__ = ["Log", "Outcome", "evaluate", "train"]

STUCK = 0.99
"""A last epoch whose loss is above this share of ln(classes) has learned nothing."""

CHECKPOINT_SHARE = 0.05
"""At most this share of the time goes into checkpoints. For small networks that is one at nearly
every step; a network of many megabytes gets one every few seconds."""

CHECKPOINT_SECONDS = 0.0
EVALUATION_BATCH = 500


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


@dataclasses.dataclass
class _Progress:
    """All of a run's state that is not in the model, the optimizer or the generators."""

    step: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    epoch_loss: float = 0.0  # summed over the images of this epoch
    epoch_images: int = 0
    recent_loss: float = 0.0  # summed over the steps since the last record
    recent_steps: int = 0
    learning_step: int = 0  # the last step recorded with a loss better than guessing


def evaluate(model: nn.Module, split: data.Split, config: RunConfig) -> tuple[float, float | None]:
    """Accuracy and mean loss in evaluation mode; the loss is None where it is not finite."""
    model.eval()
    correct, loss, count = 0, 0.0, 0
    with torch.no_grad():
        for images, labels in data.batches(
            split,
            EVALUATION_BATCH,
            seed=0,
            shuffle=False,
            size=config.size,
            channels_last=True,
        ):
            scores = model(images)
            correct += int((scores.argmax(dim=1) == labels).sum())
            loss += F.cross_entropy(scores, labels, reduction="sum").item()
            count += len(labels)
    model.train()
    return correct / count, loss / count if math.isfinite(loss) else None


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
    By epoch: ``epoch_train_loss``, ``test_accuracy``, ``test_loss`` and ``epoch_seconds``.

    Args:
        resume: the bytes of a checkpoint of this very run, to go on from.
        stopping: asked after each step; once true, the run writes a checkpoint and returns.
        checkpoint_seconds: at least so long between two checkpoints; longer where writing them
            takes more than ``CHECKPOINT_SHARE`` of the time.
    """
    classes = len(dataset.classes)
    train_split = dataset.train.take(config.train_images, seed=config.seed)
    test_split = dataset.test.take(config.test_images, seed=0)
    model = build_model(config, in_channels=train_split.images.shape[1], classes=classes)
    optimizer = build_optimizer(config, model)
    at = _Progress()
    if resume is not None:
        at = _restore(resume, model, optimizer)
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
        log.checkpoint(at.step, _state(model, optimizer, at))
        saved = time.perf_counter()
        cost = saved - begin

    def due() -> bool:
        return time.perf_counter() - saved >= max(checkpoint_seconds, cost / CHECKPOINT_SHARE)

    last_loss = 0.0
    while at.step < config.steps:
        epoch, first = divmod(at.step, config.steps_per_epoch)
        batches = data.batches(
            train_split,
            config.batch_size,
            seed=config.seed,
            epoch=epoch,
            size=config.size,
            channels_last=True,
        )
        for images, labels in itertools.islice(batches, first, None):
            loss, reading = _step(config, model, optimizer, images, labels, at.step + 1)
            at.step += 1
            if not math.isfinite(loss):
                elapse()
                _give_up(config, log, at, classes)
                return Outcome(at.step, at.seconds, diverged_step=at.step)
            at.epoch_loss += loss * len(labels)
            at.epoch_images += len(labels)
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
                "test_accuracy": accuracy,
                "test_loss": test_loss,
                "epoch_seconds": at.epoch_seconds,
            },
        )
        at.epoch_loss, at.epoch_images, at.epoch_seconds = 0.0, 0, 0.0
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
) -> tuple[float, Reading]:
    """One optimizer step, watched by the probes whose turn it is."""
    total = Reading()
    optimizer.zero_grad(set_to_none=True)
    with contextlib.ExitStack() as stack:
        readings = [
            stack.enter_context(probe(name, model))
            for name, every in config.probes
            if number % every == 0 or number == 1
        ]
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
    for reading in readings:
        total.scalars.update(reading.scalars)
        total.vectors.update(reading.vectors)
    value = loss.item()
    if math.isfinite(value):
        optimizer.step()
    return value, total


def _give_up(config: RunConfig, log: Log, at: _Progress, classes: int) -> None:
    """Write the epochs that a broken run did not finish: no loss, the accuracy of guessing."""
    for epoch in range((at.step - 1) // config.steps_per_epoch, config.epochs):
        log.measured(
            (epoch + 1) * config.steps_per_epoch,
            epoch,
            {"epoch_train_loss": None, "test_accuracy": 1 / classes, "test_loss": None},
        )


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, at: _Progress) -> bytes:
    buffer = io.BytesIO()
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": torch.get_rng_state(),
            "progress": dataclasses.asdict(at),
        },
        buffer,
    )
    return buffer.getvalue()


def _restore(state: bytes, model: nn.Module, optimizer: torch.optim.Optimizer) -> _Progress:
    saved = torch.load(io.BytesIO(state), weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["generator"])
    return _Progress(**saved["progress"])
