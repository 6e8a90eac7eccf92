r"""Scores of a model on evaluation batches, sample by sample, so that two can be compared.

Accuracy where the output is scores for one integer label a sample (and position), else the loss.
The same samples are scored before and after, so their differences are paired. Of an accuracy, with
b samples lost and c won among n, the interval is that of Agresti & Min (2005),

.. math::
    \frac{c - b}{n + 2} \pm 1.96\,\frac{\sqrt{(b + c + 1) - (c - b)^2 / (n + 2)}}{n + 2},

which claims no certainty where nothing changed. Of losses it is the mean of the differences of the
batches with 1.96 standard errors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit.doctor.finding import Gain
from normkit.statistics.batches.detached_loader import DetachedLoader
from normkit.statistics.batches.run_model import Forward, note_batch, run_model
from normkit.statistics.batches.tensors import count_samples
from normkit.statistics.contexts import batch_statistics as by_batch
from normkit.statistics.layers.preserve import (
    evaluation_mode,
    preserve_buffers,
    preserve_rng,
    run_eagerly,
)
from normkit.statistics.outputs.labels import IGNORED_LABEL, fitting_axes, labels_of
from normkit.statistics.outputs.losses import Loss, loss_of
from normkit.statistics.outputs.read import read_output

__all__ = ["Score", "gain_between", "score"]

Z = 1.959964
"""Normal quantile of a 95 % interval."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Score of a model.

    Attributes:
        correct: by sample, the share of its labels that were predicted; None without labels.
        losses: by batch, the mean loss, with ``weights`` samples; NaN where there is none.
        counted: by batch, how many samples have a label that counts.
    """

    correct: Tensor | None
    losses: Tensor
    weights: Tensor
    counted: Tensor

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.weights.sum())

    @property
    def unit(self) -> str:
        """Unit of a change: "points" of accuracy, or "loss"."""
        return "loss" if self.correct is None else "points"

    @property
    def value(self) -> float:
        """Accuracy in %, or mean loss; NaN where the model and its batches give neither."""
        if self.correct is not None:
            return 100 * float(self.correct.mean())
        return float((self.losses * self.weights).sum() / self.weights.sum())

    @property
    def exists(self) -> bool:
        """True if there is an accuracy or a loss."""
        return self.correct is not None or not bool(self.losses.isnan().any())

    def first(self, batches: int) -> Score:
        """Return the score of the first batches."""
        counted = self.counted[:batches]
        correct = None if self.correct is None else self.correct[: int(counted.sum())]
        return Score(correct, self.losses[:batches], self.weights[:batches], counted)

    def __str__(self) -> str:
        return f"{self.value:.1f} %" if self.correct is not None else f"{self.value:.4f}"


def score(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    samples: int | None,
    forward: Forward | None = None,
    loss: Loss | None = None,
    batch_statistics: bool = False,
) -> Score:
    """Score a model in evaluation mode; nothing in it changes.

    Args:
        batch_statistics: normalize by the statistics of each batch, as training does, in the
            layers that would normalize by running ones.
    """
    correct: list[Tensor | None] = []
    losses: list[float] = []
    weights: list[int] = []
    normalizing = by_batch(model) if batch_statistics else contextlib.nullcontext()
    with (
        preserve_rng(),
        run_eagerly(),
        torch.no_grad(),
        evaluation_mode(model),
        preserve_buffers(model),
        normalizing,
    ):
        for number, batch in enumerate(DetachedLoader(batches), 1):
            try:
                output = run_model(model, batch, forward)
            except Exception as error:
                note_batch(error, model, batch, number)
                raise
            right, cost = _read(output, batch, loss)
            correct.append(right)
            losses.append(cost)
            weights.append(count_samples(batch) or 0)
            if samples is not None and sum(weights) >= samples:
                break
    known = [right for right in correct if right is not None]
    return Score(
        torch.cat(known) if known and len(known) == len(correct) else None,
        torch.tensor(losses, dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor([0 if right is None else len(right) for right in correct]),
    )


def _read(output: Any, batch: Any, loss: Loss | None) -> tuple[Tensor | None, float]:
    """Return by sample how much is right, and the loss of the batch; None and NaN if unknown."""
    read = read_output(output)
    if loss is not None:
        return None, loss_of(loss, output, batch)
    labels = labels_of(batch)
    if read.values is not None and labels is not None:
        values, labels = read.values.float().cpu(), labels.cpu()
        axes = fitting_axes(values, labels)
        if len(axes) == 1:
            return _accuracy(values, labels, axes[0])
    if read.loss is not None:
        return None, read.loss
    return None, math.nan


def _accuracy(values: Tensor, labels: Tensor, axis: int) -> tuple[Tensor | None, float]:
    counts = labels != IGNORED_LABEL
    # What is not finite predicts nothing.
    finite = values.isfinite().all(axis)
    right = (values.argmax(axis) == labels) & finite & counts
    right, weight = (mask.reshape(len(mask), -1).sum(1) for mask in (right, counts))
    share = right.double() / weight.clamp_min(1)
    cost = F.cross_entropy(values.movedim(axis, 1), labels, ignore_index=IGNORED_LABEL)
    return share[weight > 0], float(cost)


def gain_between(before: Score, after: Score) -> Gain | None:
    """Compare two scores of the same batches, as far as both go; None where they cannot be."""
    if not (before.exists and after.exists) or before.unit != after.unit:
        return None
    length = min(len(before.weights), len(after.weights))
    before, after = before.first(length), after.first(length)
    if before.correct is not None and after.correct is not None:
        change, error = _change(after.correct - before.correct)
        change, error = 100 * change, 100 * error
    else:
        steps, weights = before.losses - after.losses, before.weights / before.weights.sum()
        change = float((weights * steps).sum())
        n = len(steps)
        spread = (weights.square() * (steps - change).square()).sum() * n / max(n - 1, 1)
        error = float(spread.sqrt()) if n > 1 else math.inf
    return Gain(
        before.value, after.value, change, change - Z * error, change + Z * error,
        before.unit, before.samples,
    )  # fmt: skip


def _change(steps: Tensor) -> tuple[float, float]:
    n = len(steps) + 2
    # Half a sample is added to each of the four cells of the table of before and after.
    squares, total = float(steps.square().sum()) + 1, float(steps.sum())
    change = total / n
    return change, math.sqrt(max(squares - n * change**2, 0)) / n
