"""Train one run, from its description to its measurements.

:mod:`normkit.lab.building` explains how the arms of a comparison are paired: two runs with one
seed see the same images in the same order and start from the same weights. The run's task decides
what is learned and which *figure* is measured (accuracy, for classification); see
:mod:`normkit.lab.tasks`.

A run that breaks is a result, not an error. It *diverged* if a training loss is not finite, or a
layer's statistics exceed their type (the run ends there, and its remaining epochs count at chance
level, 1 / classes for accuracy), or if the mean training loss of its last epoch is above 99 % of
the loss of guessing, ln(classes) for classification (the run is trained to the end and its figures
are those measured; the step noted is the last one recorded with a loss below that).

A run can stop after any step and resume from its last checkpoint bit for bit, on the same machine
with the same number of threads, on a CPU. On another placement (:mod:`normkit.lab.placement`) it
resumes too, to results that differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable

from normkit.lab import data
from normkit.lab.config import RunConfig
from normkit.lab.placement import Placement, current_placement, use_placement
from normkit.lab.trainer import Log, Outcome, Trainer

__all__ = ["train"]


def train(
    config: RunConfig,
    dataset: data.Dataset,
    log: Log,
    *,
    resume: bytes | None = None,
    stopping: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 0.0,
    placement: Placement | None = None,
) -> Outcome:
    """Train one run and write its measurements to ``log``.

    By step: ``train_loss``, the mean over the last ``loss_every`` steps, and the readings of the
    probes. By epoch: ``epoch_train_loss`` and ``epoch_train_accuracy`` (or the task's other
    figure), both on each batch as the model saw it before learning from it; and
    ``epoch_seconds``, the time of training and of the first evaluation. After each evaluation:
    ``test_accuracy`` and ``test_loss``, and the same two under each of the run's conditions; what
    the single test images add to them is in vectors of their names (:mod:`normkit.lab.by_image`).

    Args:
        resume: the checkpoint of this very run to resume from.
        stopping: polled after each step; once true, the run writes a checkpoint and returns.
        checkpoint_seconds: least time between two checkpoints; longer where writing them takes
            more than a twentieth of the time.
        placement: None means this process, on the CPU. Processes that train together all call this
            with the same arguments except ``log`` and ``stopping``, of which rank 0's count.
    """
    with use_placement(placement or current_placement()):
        return Trainer(
            config,
            dataset,
            log,
            resume=resume,
            stopping=stopping,
            checkpoint_seconds=checkpoint_seconds,
        ).run()
