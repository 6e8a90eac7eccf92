"""What :func:`normkit.consistency` found: how far two modes are apart, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normkit.handle import Left, place_name
from normkit.statistics.estimate import LayerStatistics, distance, rms
from normkit.statistics.results import deviations, factor, lines, named, plain

__all__ = ["Consistency", "Gap", "OutputGap", "gap"]

FAR = 0.1
"""A tenth of a deviation, or of the variance, matters: less is what averages do anyway."""

SURE = 3.0
"""Standard errors; a layer has many channels, so chance does not get the mean square there."""


class Gap(NamedTuple):
    """What a layer remembers against what it is given: root mean squares over channels.

    Attributes:
        mean: distance of the means, in deviations of what is given.
        variance: typical factor, at least 1, between the variances.
        mean_errors: distance of the means in their standard errors; about 1 is chance.
        variance_errors: of the variances, likewise.
    """

    mean: float
    variance: float
    mean_errors: float
    variance_errors: float

    @property
    def far(self) -> bool:
        """Whether it is large enough to matter and surely no chance; or not finite at all."""
        if not math.isfinite(self.mean + self.variance):
            return True
        return (self.mean > FAR and self.mean_errors > SURE) or (
            self.variance > 1 + FAR and self.variance_errors > SURE
        )


class OutputGap(NamedTuple):
    """The model's output, by the statistics of each batch and by those remembered.

    Attributes:
        difference: root mean square of the difference, relative to the output's deviation.
        agreement: share of predictions (largest along axis 1) that are the same; None where the
            output is not made of scores.
        loss: mean loss by the batch's statistics, and by those remembered; None without labels.
        loss_difference: the second less the first, and its standard error between batches.
    """

    difference: float
    agreement: float | None
    loss: tuple[float, float] | None
    loss_difference: tuple[float, float] | None


class Consistency:
    """What :func:`normkit.consistency` found; ``print`` it.

    Attributes:
        layers: by layer, in the order in which they are called, the :class:`Gap` between what it
            remembers and what training shows it: its own fault, whatever came before.
        inherited: the gap to what evaluation shows it, where the layers before already normalize
            by what they remember.
        output: the :class:`OutputGap`.
        parts_at: the first layer whose own gap matters; None where all agree.
        left: layers that were not looked at, such as frozen ones, and why.
        samples, batch_size: how many were looked at; the training side's statistics are those of
            batches of that size.
    """

    def __init__(
        self,
        layers: Mapping[str, Gap],
        inherited: Mapping[str, Gap],
        output: OutputGap,
        kinds: Mapping[str, type],
        left: Sequence[Left],
        samples: int,
        batches: int,
    ) -> None:
        self.layers = dict(layers)
        self.inherited = dict(inherited)
        self.output = output
        self.left = tuple(left)
        self.samples = samples
        self.batch_size = round(samples / batches)
        self.parts_at = next((name for name, gap in layers.items() if gap.far), None)
        self._kinds = dict(kinds)

    def __repr__(self) -> str:
        rows = []
        for name, gap in self.layers.items():
            later = self.inherited.get(name)
            rows.append(
                (
                    named(name, self._kinds[name]),
                    deviations(gap.mean),
                    factor(gap.variance),
                    f"{plain(gap.mean_errors)}, {plain(gap.variance_errors)}",
                    # Evaluation may go another way.
                    f"{deviations(later.mean)}, {factor(later.variance)}" if later else "–",
                )
            )
        head = ("layer", "mean off", "variance off", "in standard errors", "in evaluation")
        return "\n".join([*self._head(), *lines(head, rows, self.left)])

    def _head(self) -> list[str]:
        out = self.output
        said = [f"outputs differ by {100 * out.difference:.2g} % of their deviation"]
        if out.agreement is not None:
            said.append(f"{100 * out.agreement:.1f} % of predictions agree")
        if out.loss is not None and out.loss_difference is not None:
            a, b = out.loss
            step, error = out.loss_difference
            said.append(f"loss {a:.4f} → {b:.4f} ({step:+.4f} ± {error:.4f})")
        if self.parts_at is None:
            verdict = "every layer remembers what training shows it"
        else:
            verdict = (
                f"they part at {place_name(self.parts_at)}; normkit.recalibrate(model, batches) "
                "makes the remembered statistics those of the data"
            )
        return [
            f"consistency: batch statistics against remembered ones, {self.samples:,} samples in "
            f"batches of {self.batch_size}",
            f"  output: {'; '.join(said)}",
            f"  layers: {verdict}",
        ]


def gap(remembered: LayerStatistics, found: LayerStatistics, eps: float) -> Gap:
    """How far what a layer remembers is from what it was found to be given."""
    return Gap(
        *distance(remembered.mean, remembered.variance, found, eps),
        _in_errors(remembered.mean - found.mean, found.mean_standard_error),
        _in_errors(remembered.variance - found.variance, found.variance_standard_error),
    )


def _in_errors(step: Tensor, error: Tensor) -> float:
    # A channel that is always the same, and remembered so, is not off.
    return rms(torch.where(step == 0, torch.zeros_like(step), step / error))
