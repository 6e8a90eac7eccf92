"""Result of :func:`normkit.consistency`: the gaps between two modes, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normkit.handle import Skipped, place_name
from normkit.statistics.estimate import LayerStatistics, distance, rms
from normkit.statistics.results import (
    format_deviations,
    format_factor,
    format_number,
    format_table,
    layer_label,
)

__all__ = ["Consistency", "Gap", "OutputComparison", "gap_between"]

MIN_GAP = 0.1
"""Smallest gap that matters, of a deviation or of the variance; running averages differ by less."""

MIN_ERRORS = 3.0
"""Smallest significant gap, in standard errors, as a root mean square over channels."""


class Gap(NamedTuple):
    """Running statistics of a layer against those of its input: root mean squares over channels.

    Attributes:
        mean: distance of the means, in deviations of the input.
        variance: typical factor, at least 1, between the variances.
        mean_errors: distance of the means in their standard errors; about 1 is chance.
        variance_errors: of the variances, likewise.
    """

    mean: float
    variance: float
    mean_errors: float
    variance_errors: float

    @property
    def matters(self) -> bool:
        """True if it is large enough to matter and significant, or not finite."""
        if not math.isfinite(self.mean + self.variance):
            return True
        return (self.mean > MIN_GAP and self.mean_errors > MIN_ERRORS) or (
            self.variance > 1 + MIN_GAP and self.variance_errors > MIN_ERRORS
        )


class OutputComparison(NamedTuple):
    """The model's output with batch statistics against its output with running statistics.

    Attributes:
        difference: root mean square of the difference, relative to the output's deviation.
        agreement: share of predictions (largest along axis 1) that are the same; None where the
            output is not made of scores.
        loss: mean loss with batch statistics, and with running ones; None without labels.
        loss_difference: the second less the first, and its standard error between batches.
    """

    difference: float
    agreement: float | None
    loss: tuple[float, float] | None
    loss_difference: tuple[float, float] | None


class Consistency:
    """Result of :func:`normkit.consistency`; ``print`` it.

    Attributes:
        layers: by layer, in the order of their calls, the :class:`Gap` between its running
            statistics and its input in training: mismatch in this layer itself, given batch
            statistics upstream.
        inherited: the gap to its input in evaluation, given running statistics upstream.
        output: the :class:`OutputComparison`.
        first_mismatch: the first layer whose own gap matters; None where all agree.
        skipped: layers that were not measured, such as frozen ones, and why.
        samples, batch_size: how many were compared; training's side has the statistics of batches
            of that size.
    """

    def __init__(
        self,
        layers: Mapping[str, Gap],
        inherited: Mapping[str, Gap],
        output: OutputComparison,
        classes: Mapping[str, type],
        skipped: Sequence[Skipped],
        samples: int,
        batches: int,
    ) -> None:
        self.layers = dict(layers)
        self.inherited = dict(inherited)
        self.output = output
        self.skipped = tuple(skipped)
        self.samples = samples
        self.batch_size = round(samples / batches)
        self.first_mismatch = next((name for name, gap in layers.items() if gap.matters), None)
        self._classes = dict(classes)

    @property
    def left(self) -> tuple[Skipped, ...]:
        """Former name of ``skipped``."""
        return self.skipped

    def __repr__(self) -> str:
        rows = []
        for name, gap in self.layers.items():
            later = self.inherited.get(name)
            rows.append(
                (
                    layer_label(name, self._classes[name]),
                    format_deviations(gap.mean),
                    format_factor(gap.variance),
                    f"{format_number(gap.mean_errors)}, {format_number(gap.variance_errors)}",
                    # Evaluation may not call the layer.
                    f"{format_deviations(later.mean)}, {format_factor(later.variance)}"
                    if later
                    else "–",
                )
            )
        columns = ("layer", "mean gap", "variance gap", "gaps in standard errors", "in evaluation")
        return "\n".join([*self._head(), *format_table(columns, rows, self.skipped)])

    def _head(self) -> list[str]:
        out = self.output
        parts = [f"outputs differ by {100 * out.difference:.2g} % of their standard deviation"]
        if out.agreement is not None:
            parts.append(f"{100 * out.agreement:.1f} % of predictions agree")
        if out.loss is not None and out.loss_difference is not None:
            a, b = out.loss
            step, error = out.loss_difference
            parts.append(f"loss {a:.4f} → {b:.4f} ({step:+.4f} ± {error:.4f})")
        if self.first_mismatch is None:
            verdict = "running statistics match the training data in every layer"
        else:
            verdict = (
                f"first mismatch at {place_name(self.first_mismatch)}; "
                "normkit.recalibrate(model, batches) replaces running statistics by those of the "
                "data"
            )
        return [
            f"consistency: batch statistics against running statistics, {self.samples:,} samples "
            f"in batches of {self.batch_size}",
            f"  output: {'; '.join(parts)}",
            f"  layers: {verdict}",
        ]


def gap_between(running: LayerStatistics, measured: LayerStatistics, eps: float) -> Gap:
    """Compare a layer's running statistics with those measured in its input."""
    return Gap(
        *distance(running.mean, running.variance, measured, eps),
        _in_errors(running.mean - measured.mean, measured.mean_standard_error),
        _in_errors(running.variance - measured.variance, measured.variance_standard_error),
    )


def _in_errors(step: Tensor, error: Tensor) -> float:
    # A constant channel whose running statistics say so has no gap.
    return rms(torch.where(step == 0, torch.zeros_like(step), step / error))
