r"""Scores of a model on evaluation batches, sample by sample, so that two can be compared.

Accuracy where the output is scores for one integer label a sample (and position), else the loss.
The same samples are scored before and after, so their differences are paired. Of an accuracy, with
b samples lost and c won among n, the interval is that of Agresti & Min (2005),

.. math::
    \frac{c - b}{n + 2} \pm 1.96\,\frac{\sqrt{(b + c + 1) - (c - b)^2 / (n + 2)}}{n + 2},

which claims no certainty where nothing changed. Of losses it is the mean of the differences of the
batches, by Student's t. Where a model returns a loss of its own for labels of several positions, as
language models do that shift them, that is the score, and no accuracy is guessed.
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


def student(freedom: int) -> float:
    """Return the quantile of Student's t for a 95 % interval, to a part in a thousand.

    Exact for one and two degrees of freedom; else the series of Abramowitz & Stegun 26.7.5.

    >>> [round(student(n), 2) for n in (1, 2, 3, 10, 1000)]
    [12.71, 4.3, 3.18, 2.23, 1.96]
    """
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, n = Z, freedom
    series = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(n) ** (power + 1) for power, term in enumerate(series))


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
        """True if there is an accuracy or a loss of at least one sample."""
        if self.correct is not None:
            return bool(len(self.correct))
        return bool(len(self.losses)) and not bool(self.losses.isnan().any())

    @property
    def scored(self) -> int:
        """Number of samples with a label that counts; of all for a loss."""
        return self.samples if self.correct is None else len(self.correct)

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
        shifts = labels.dim() > 1 and read.loss is not None
        if len(axes) == 1 and not shifts:
            return _accuracy(values, labels, axes[0])
    if read.loss is not None:
        return None, read.loss
    return None, math.nan


def _accuracy(values: Tensor, labels: Tensor, axis: int) -> tuple[Tensor | None, float]:
    counts = labels != IGNORED_LABEL
    # What is not finite predicts nothing.
    finite = values.isfinite().all(axis)
    right = (values.argmax(axis) == labels) & finite & counts
    right, weight = (mask.unsqueeze(-1).flatten(1).sum(1) for mask in (right, counts))
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
        change, width = 100 * change, 100 * Z * error
    else:
        steps, weights = before.losses - after.losses, before.weights / before.weights.sum()
        change = float((weights * steps).sum())
        n = len(steps)
        spread = (weights.square() * (steps - change).square()).sum() * n / max(n - 1, 1)
        width = student(n - 1) * float(spread.sqrt()) if n > 1 else math.inf
    return Gain(
        before.value, after.value, change, change - width, change + width, before.unit,
        before.scored,
    )  # fmt: skip


def _change(steps: Tensor) -> tuple[float, float]:
    n = len(steps) + 2
    # Half a sample is added to each of the four cells of the table of before and after.
    squares, total = float(steps.square().sum()) + 1, float(steps.sum())
    change = total / n
    return change, math.sqrt(max(squares - n * change**2, 0)) / n
