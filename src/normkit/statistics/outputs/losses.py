"""Losses of batches in two modes: their means, and the difference with its standard error."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normkit.core.moments import Moments
from normkit.errors import TypeMismatchError, message
from normkit.statistics.estimates.estimate import Estimate, statistics
from normkit.statistics.printing.describe import describe

__all__ = ["Loss", "Losses", "loss_of"]

Loss = Callable[[Any, Any], Tensor]
"""``loss(output, batch)``: the mean loss over a batch."""


class Losses:
    """Losses of batches in both modes, weighed by what counts in them.

    Attributes:
        batches: number of batches that have a loss.
        left_out: number of batches whose loss is not finite in one of the modes.
    """

    def __init__(self) -> None:
        self.batches = self.left_out = 0
        self._not_finite = [0, 0]
        self._sums, self._weight = [0.0, 0.0], 0
        self._steps = Estimate(1)

    def add(self, pair: list[float], weight: int) -> None:
        """Add the mean losses of a batch."""
        if not weight:  # nothing counts in it; a mean of nothing is NaN
            self.batches += 1
            return
        if not all(map(math.isfinite, pair)):
            self.left_out += 1
            for i, value in enumerate(pair):
                self._not_finite[i] += not math.isfinite(value)
            return
        self.batches += 1
        self._weight += weight
        for i, value in enumerate(pair):
            self._sums[i] += weight * value
        step = torch.tensor([pair[1] - pair[0]], dtype=torch.float64, device="cpu")
        size = torch.tensor(float(weight), dtype=torch.float64, device="cpu")
        self._steps.add(Moments(size, step, torch.zeros_like(step)))

    def means(self) -> tuple[float, float] | None:
        """Return the mean losses with batch and with running statistics."""
        if not self._weight:
            return None
        return self._sums[0] / self._weight, self._sums[1] / self._weight

    def step(self) -> tuple[float, float] | None:
        """Return the second less the first, and its standard error."""
        if not self._weight:
            return None
        step = statistics(self._steps.units())
        return float(step.mean), float(step.mean_standard_error)

    def note(self, batches: int) -> str:
        """Say which batches were left out."""
        first, second = self._not_finite
        return (
            f"loss not finite in {self.left_out} of {batches} batches, which are left out of it "
            f"({first} with batch statistics, {second} with running statistics)"
        )


def loss_of(loss: Loss, output: Any, batch: Any) -> float:
    """Call the user's loss.

    Raises:
        TypeMismatchError: it returns anything else than one number. Its own errors pass.
    """
    try:
        value: Any = loss(output, batch)
    except Exception as error:
        if hasattr(error, "add_note"):
            error.add_note(
                f"normkit: raised by loss(output, batch), where the batch is {describe(batch)}. "
                "For a criterion of outputs and targets, pass loss=lambda output, batch: "
                "criterion(output, batch[1])."
            )
        raise
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        if not isinstance(value, (str, bytes)):
            return float(value)
    raise TypeMismatchError(
        message(
            "loss(output, batch) to return one number, the mean over the batch's samples",
            describe(value),
            'average it, such as with reduction="mean"',
        )
    )
