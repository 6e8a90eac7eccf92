"""How the outputs of two modes differ: in value, in what they predict, in loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normkit.core.moments import Moments
from normkit.errors import DataError, explain
from normkit.statistics.estimate import Estimate, statistics
from normkit.statistics.feeding import leaves
from normkit.statistics.gaps import OutputGap

__all__ = ["Loss", "Outputs"]

Loss = Callable[[Any, Any], Tensor]
"""``loss(output, batch)``: the mean loss over a batch."""


IGNORED = -100
"""The label that PyTorch's cross-entropy leaves out."""


class Outputs:
    """Gathers how the two outputs of each batch differ."""

    def __init__(self, loss: Loss | None) -> None:
        self._loss = loss
        self._differences = Estimate(1)
        self._apart = self._total = 0.0
        self._agreeing = self._predictions = 0
        self._losses = [0.0, 0.0]
        self._values: list[Moments] = []
        self._samples = 0
        self.batches = 0

    def add(self, first: Any, second: Any, batch: Any, count: int) -> None:
        self.batches += 1
        self._samples += count
        a, b = (leaves(out) for out in (first, second))
        if not a and self._loss is None:
            raise DataError(
                explain(
                    "the outputs of the two modes are compared, so the model gives back a tensor",
                    f"a {type(first).__name__}",
                    "pass forward=lambda model, batch: ... that gives back what counts",
                )
            )
        if a:
            x, y = a[0].detach().double(), b[0].detach().double()
            self._apart += float((x - y).square().sum())
            self._total += float((x - x.mean(0, keepdim=True)).square().sum())
            if x.dim() >= 2 and x.shape[1] > 1:
                same = x.argmax(1) == y.argmax(1)
                self._agreeing += int(same.sum())
                self._predictions += same.numel()
        losses = [_loss_of(self._loss, out, batch) for out in (first, second)]
        if losses[0] is not None and losses[1] is not None:
            for i, value in enumerate(losses):
                self._losses[i] += float(value or 0.0) * count
            size = torch.tensor(float(count), dtype=torch.float64)
            step = torch.tensor([losses[1] - losses[0]], dtype=torch.float64)
            self._differences.add(Moments(size, step, torch.zeros_like(step)))

    def told(self) -> OutputGap:
        units = self._differences.units()
        loss = step = None
        if len(units.count):
            loss = (self._losses[0] / self._samples, self._losses[1] / self._samples)
            found = statistics(units)
            step = (float(found.mean), float(found.mean_standard_error))
        return OutputGap(
            math.sqrt(self._apart / self._total) if self._total > 0 else math.nan,
            self._agreeing / self._predictions if self._predictions else None,
            loss,
            step,
        )


def _loss_of(loss: Loss | None, output: Any, batch: Any) -> float | None:
    if loss is not None:
        return float(loss(output, batch))
    if not (isinstance(batch, (list, tuple)) and len(batch) == 2 and isinstance(output, Tensor)):
        return None
    labels = batch[1]
    if not (
        isinstance(labels, Tensor)
        and labels.dtype == torch.int64
        and output.dim() >= 2
        and labels.shape == (output.shape[0], *output.shape[2:])
    ):
        return None
    # Labels of other classes: the output is something else than scores, such as an embedding.
    if bool(((labels >= output.shape[1]) | ((labels < 0) & (labels != IGNORED))).any()):
        return None
    return float(F.cross_entropy(output.float(), labels.to(output.device)))
