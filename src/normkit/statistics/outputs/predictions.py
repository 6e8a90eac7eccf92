"""Predictions of two modes: how many are the same, and what they cost by cross-entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from normkit.statistics.outputs.labels import IGNORED_LABEL
from normkit.statistics.outputs.losses import Losses

__all__ = ["Predictions"]


class Predictions:
    """Predictions of the two modes, and the cross-entropies of their scores.

    Attributes:
        batches: number of batches.
        axis: of the classes.
        losses: cross-entropies, a label that counts weighing one.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.axis: int | None = None
        self.losses = Losses()
        self._same = self._count = 0
        self._sums, self._counted = [0.0, 0.0], 0

    @property
    def agreement(self) -> float | None:
        """Share of predictions that are the same; None without any."""
        return self._same / self._count if self._count else None

    def begin(self) -> None:
        """Begin a batch."""
        self.batches += 1
        self._sums, self._counted = [0.0, 0.0], 0

    def add(self, a: Tensor, b: Tensor, axis: int, labels: Tensor | None) -> None:
        """Add a part of the scores of a batch; labels that are ignored weigh nothing."""
        self.axis = axis
        same = a.argmax(axis) == b.argmax(axis)
        same &= ~(a.isnan() | b.isnan()).any(axis)  # which predict nothing
        if labels is None:
            self.add_same(same)
            return
        counts = labels != IGNORED_LABEL
        self.add_same(same[counts])
        self._counted += int(counts.sum())
        for i, scores in enumerate((a, b)):
            self._sums[i] += float(
                F.cross_entropy(
                    scores.movedim(axis, 1), labels, ignore_index=IGNORED_LABEL, reduction="sum"
                )
            )

    def add_same(self, same: Tensor) -> None:
        """Add predictions by whether they are the same."""
        self._same += int(same.sum())
        self._count += same.numel()

    def end(self) -> None:
        """End a batch."""
        self.losses.add([total / max(self._counted, 1) for total in self._sums], self._counted)
