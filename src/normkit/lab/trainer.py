"""One training in progress: its model, optimizer, progress and log, and the steps it takes."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from normkit.errors import NonFiniteError
from normkit.lab import data
from normkit.lab.building import build_model, build_optimizer
from normkit.lab.by_image import to_vectors
from normkit.lab.checkpoints import Progress, restore, state
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.domains import forward
from normkit.lab.epochs import epoch_batches
from normkit.lab.evaluations import chance_score, evaluate, evaluate_under
from normkit.lab.freezing import freeze_statistics, is_frozen_epoch
from normkit.lab.models.forms import quickest
from normkit.lab.placement import current_placement
from normkit.lab.probes import Reading, Step, observe
from normkit.lab.schedules import set_rate
from normkit.lab.tasks import task_of

__all__ = ["Log", "Outcome", "SilentLog", "Trainer"]

CHECKPOINT_SHARE = 0.01
"""Checkpoints take at most this share of the time. Small networks get one every second or so; a
network of many megabytes gets one every half minute."""


class Log(Protocol):
    """The destination of a training's measurements and checkpoints, such as a lease."""

    def record(
        self,
        step: int,
        epoch: int,
        metrics: Mapping[str, float | None],
        vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> None: ...

    def checkpoint(self, step: int, state: bytes) -> None: ...


class SilentLog:
    """A log that keeps nothing."""

    def record(
        self,
        step: int,
        epoch: int,
        metrics: Mapping[str, float | None],
        vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        pass

    def checkpoint(self, step: int, state: bytes) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of a training. ``stopped``: on request, and it can be resumed."""

    step: int
    seconds: float
    diverged_step: int | None = None
    stopped: bool = False


class _DivergedError(Exception):
    """The run has no finite loss, or no finite statistics, from here on."""


class _StoppedError(Exception):
    """The run was asked to stop, and has saved its state."""


class Trainer:
    """One training, under the placement in force; see :func:`normkit.lab.training.train`."""

    def __init__(
        self,
        config: RunConfig,
        dataset: data.Dataset,
        log: Log,
        *,
        resume: bytes | None,
        stopping: Callable[[], bool],
        checkpoint_seconds: float,
    ) -> None:
        self.config, self.log, self.stopping = config, log, stopping
        self.checkpoint_seconds = checkpoint_seconds
        self.placement, self.task = current_placement(), task_of(config)
        self.dataset = dataclasses.replace(
            dataset,
            train=dataset.train.take(config.train_images, seed=config.seed),
            test=dataset.test.take(config.test_images, seed=0),
        )
        channels, classes = dataset.train.images.shape[1], len(dataset.classes)
        self.model = build_model(config, in_channels=channels, classes=classes)
        if not config.probes:  # they look at the layers as they stand
            quickest(self.model)
        self.learner = self.placement.prepare_model(self.model)
        self.optimizer = build_optimizer(config, self.model)
        self.progress = Progress()
        if resume is not None:
            self.progress = restore(resume, self.model, self.optimizer, self.placement.device)
        self.model.train()
        self.chance_loss = self.task.chance_loss(config, classes)
        self.epoch = 0
        self.epoch_loss = 0.0
        self.frozen = False
        self.clock = self.saved_at = time.perf_counter()
        self.save_seconds = 0.0

    def run(self) -> Outcome:
        """Train epoch after epoch, until all are done, the run diverges, or it is asked to stop."""
        at = self.progress
        try:
            while at.step < self.config.steps:
                self.train_epoch()
                if at.step < self.config.steps:
                    self.pause()
        except _StoppedError:
            return Outcome(at.step, at.seconds, stopped=True)
        except _DivergedError:
            self.give_up()
            return Outcome(at.step, at.seconds, diverged_step=at.step)
        stuck = self.epoch_loss > self.chance_loss
        return Outcome(at.step, at.seconds, diverged_step=at.learning_step if stuck else None)

    def train_epoch(self) -> None:
        """Train from the current step to the end of its epoch, then evaluate."""
        self.epoch, first = divmod(self.progress.step, self.config.steps_per_epoch)
        if is_frozen_epoch(self.config, self.epoch) and not self.frozen:
            self.freeze()
        batches = epoch_batches(self.config, self.dataset.train, self.epoch)
        for images, targets in itertools.islice(batches, first, None):
            self.step(images, targets)
            if self.progress.step % self.config.steps_per_epoch:
                self.pause()
        self.evaluate()

    def freeze(self) -> None:
        """Switch the layers to population statistics for the remaining epochs."""
        try:
            freeze_statistics(self.model, self.dataset.train, self.config, self.progress.step)
        except NonFiniteError:
            raise _DivergedError from None
        self.frozen = True

    def step(self, images: Tensor, targets: Tensor) -> None:
        """Train on one batch and record its measurements."""
        at = self.progress
        set_rate(self.optimizer, self.config, at.step)
        try:
            loss, figure, reading = self.learn(images, targets)
        except NonFiniteError:  # activations whose variance no layer can remember
            loss, figure, reading = math.nan, 0.0, Reading()
        at.step += 1
        if not math.isfinite(loss):
            raise _DivergedError
        at.count_batch(loss, figure, len(targets))
        metrics = reading.scalars
        if at.step % self.config.loss_every == 0 or at.step == self.config.steps:
            mean = metrics["train_loss"] = at.take_recent_loss()
            if mean <= self.chance_loss:
                at.learning_step = at.step
        if metrics:
            self.log.record(at.step, self.epoch, metrics, reading.vectors)

    def learn(self, images: Tensor, targets: Tensor) -> tuple[float, float, Reading]:
        """Take one optimizer step, observed by the probes due at it.

        Each process learns from its shard. A loss that is not finite changes no weight.

        Returns:
            Mean loss and summed figure, both of the whole batch, and the probes' readings.
        """
        placement, number = self.placement, self.progress.step + 1
        self.optimizer.zero_grad(set_to_none=True)
        whole = len(targets)
        images, targets = placement.shard_batch(images, targets)
        due = [name for name, every in self.config.probes if number % every == 0 or number == 1]
        step = Step(lambda: self.mean_loss(images, targets), self.optimizer.param_groups[0]["lr"])
        with observe(due, self.learner, step) as reading:
            outputs = forward(self.config, self.learner, images)
            if placement.size == 1:
                loss = self.task.loss(outputs, targets, reduction="mean")
            else:
                # Gradients are averaged over processes, whatever the size of their shards.
                loss = self.task.loss(outputs, targets, reduction="sum") * (placement.size / whole)
            loss.backward()
        mean, figure = placement.all_sum(
            loss.item() / placement.size, self.task.count(outputs.detach(), targets)
        )
        if math.isfinite(mean):
            self.optimizer.step()
        return mean, figure, reading

    def mean_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss on images, with the model as it is."""
        outputs = forward(self.config, self.learner, images)
        return self.task.loss(outputs, targets, reduction="mean")

    def evaluate(self) -> None:
        """Record the epoch's measurements, evaluate if it is time to, and begin the next one."""
        at, figure = self.progress, self.task.figure
        self.epoch_loss = at.epoch_loss / at.epoch_images
        metrics: dict[str, float | None] = {
            "epoch_train_loss": self.epoch_loss,
            f"epoch_train_{figure}": at.epoch_figure,
        }
        vectors: dict[str, Sequence[float]] = {}
        if self.config.is_evaluated(self.epoch):
            with self.placement.without_sync(self.model):
                test = evaluate(self.model, self.dataset.test, self.config)
                self.elapse()
                under, vectors = evaluate_under(
                    self.config.conditions(self.epoch),
                    self.model,
                    self.dataset,
                    self.config,
                    self.epoch,
                )
            metrics |= {f"test_{figure}": test.figure, "test_loss": test.loss, **under}
            vectors |= to_vectors(self.config, None, test.figures, test.losses)
        else:
            self.elapse()
        # Without the time of the further conditions, which the training does not need.
        metrics["epoch_seconds"] = at.epoch_seconds
        self.log.record(at.step, self.epoch, metrics, vectors)
        self.elapse()
        at.end_epoch()

    def pause(self) -> None:
        """Save the state and stop if asked to; otherwise save it if a checkpoint is due."""
        if self.placement.broadcast_flag(self.stopping()):
            self.save()
            raise _StoppedError
        least = max(self.checkpoint_seconds, self.save_seconds / CHECKPOINT_SHARE)
        if time.perf_counter() - self.saved_at >= least:
            self.save()

    def save(self) -> None:
        """Write a checkpoint."""
        self.elapse()
        begin = time.perf_counter()
        if self.placement.rank == 0:
            saved = state(self.model, self.optimizer, self.progress, self.placement.device)
            self.log.checkpoint(self.progress.step, saved)
        self.saved_at = time.perf_counter()
        self.save_seconds = self.saved_at - begin

    def elapse(self) -> None:
        """Add the time since the last call to that of the run and of its epoch."""
        now = time.perf_counter()
        self.progress.seconds += now - self.clock
        self.progress.epoch_seconds += now - self.clock
        self.clock = now

    def give_up(self) -> None:
        """Record the unfinished epochs of a diverged run: no loss, figures at chance level."""
        self.elapse()
        figure, chance = self.task.figure, chance_score(self.dataset, self.config)
        per_epoch = self.config.steps_per_epoch
        for epoch in range(self.epoch, self.config.epochs):
            metrics: dict[str, float | None] = {
                "epoch_train_loss": None,
                f"epoch_train_{figure}": None,
            }
            vectors: dict[str, Sequence[float]] = {}
            conditions = (None, *self.config.conditions(epoch))
            for condition in conditions if self.config.is_evaluated(epoch) else ():
                name = named("{}", condition) if condition else "{}"
                metrics[name.format(f"test_{figure}")] = chance.figure
                metrics[name.format("test_loss")] = None
                vectors |= to_vectors(self.config, condition, chance.figures, chance.losses)
            self.log.record((epoch + 1) * per_epoch, epoch, metrics, vectors)
