"""Compare a model in training mode with itself in evaluation mode: :func:`consistency`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit.core.moments import Moments
from normkit.errors import DataError, message
from normkit.statistics.agreement import Consistency, Gap, OutputComparison, gap_between
from normkit.statistics.arguments import (
    check_batches,
    check_function,
    check_model,
    check_samples,
)
from normkit.statistics.batches import Forward, tensors_in
from normkit.statistics.estimate import Estimate, LayerStatistics, statistics
from normkit.statistics.observe import observing
from normkit.statistics.passes import bar, check_statistics
from normkit.statistics.preserve import detached_loader
from normkit.statistics.stats_layers import (
    NormLayer,
    find_norm_layers,
    layers_by_bank,
    unwrap,
)

__all__ = ["consistency"]

Loss = Callable[[Any, Any], Tensor]
"""``loss(output, batch)``: the mean loss over a batch."""

IGNORED_LABEL = -100
"""The label that PyTorch's cross-entropy ignores."""


def consistency(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    samples: int | None = 2_000,
    forward: Forward | None = None,
    loss: Loss | None = None,
    progress: bool = True,
) -> Consistency:
    """Compare training mode, with each batch's statistics, to evaluation mode, with running ones.

    Each batch goes through the model twice with the same weights: once with every layer
    normalizing by the batch, once by its running statistics. Dropout is off in both, so the
    difference is due to the statistics. A layer's own gap is between its running statistics and
    its input in the first pass; the first layer whose gap matters is where the two modes part.
    Nothing in the model changes.

    Args:
        model: any module, in any mode; its layers as for :func:`normkit.recalibrate`.
        batches: as for :func:`normkit.recalibrate`, of the size used in training, as training's
            side depends on it.
        samples: stop at the first batch that reaches so many; None for all there are.
        forward: called as ``forward(model, batch)``; its result is the output.
        loss: called as ``loss(output, batch)``, the mean over the batch. Without it, batches
            (images, integer labels) get the cross-entropy of their scores.
        progress: show a bar, on a terminal.

    Returns:
        A :class:`normkit.statistics.Consistency`: ``print`` it, or read ``.layers``, ``.output``
        and ``.first_mismatch``.

    Raises:
        As :func:`normkit.recalibrate`; and DataError where the model returns no tensor and there
        is no ``loss`` to compare by.

    Source: Wu & Johnson 2021, arXiv 2105.07576, sections 3 and 4 (train-test inconsistency).

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2))
    >>> data = [5 + torch.randn(50, 4) for _ in range(20)]
    >>> consistency(model, data).first_mismatch             # never trained: running 0 and 1
    '0'
    >>> from normkit.statistics import recalibrate
    >>> result = recalibrate(model, data)
    >>> print(consistency(model, data).first_mismatch)
    None
    """
    check_model(model, "consistency", batches)
    check_batches(batches)
    check_function(forward, "forward", "forward(model, batch)")
    check_function(loss, "loss", "loss(output, batch)")
    check_samples(samples)
    inner = unwrap(model)
    layers, skipped = find_norm_layers(inner)
    running = _running_statistics(layers)
    with observing(inner, layers) as observer, bar(progress) as shown:
        training: dict[str, Estimate] = {}
        evaluation: dict[str, Estimate] = {}
        outputs = _OutputSums(loss)
        shown.begin(samples)
        for batch in detached_loader(batches):
            observer.start({}, training)
            count = observer.run(batch, forward, to_end=True)
            if not count:
                continue
            by_batch = observer.output
            observer.start(running, evaluation)
            observer.run(batch, forward, to_end=True)
            outputs.add(by_batch, observer.output, batch, count)
            shown.at(outputs.samples)
            if samples is not None and outputs.samples >= samples:
                break
    if not training:
        raise DataError(
            message(
                "batches that reach a layer with running statistics",
                "none",
                "pass at least one batch that is not empty",
            )
        )
    measured = _measured(training)
    check_statistics(measured, layers)
    classes = {name: type(one.layer) for name, one in layers_by_bank(layers).items()}
    gaps, inherited = (_gaps(layers, running, s) for s in (measured, _measured(evaluation)))
    return Consistency(
        gaps, inherited, outputs.result(), classes, skipped, outputs.samples, outputs.batches
    )


def _running_statistics(layers: Sequence[NormLayer]) -> dict[str, LayerStatistics]:
    running = {}
    for one in layers:
        for name, row in one.banks:
            mean, variance = one.stats(row)
            zeros = torch.zeros_like(mean)
            running[name] = LayerStatistics(mean, variance, zeros, zeros, 0)
    return running


def _measured(estimates: Mapping[str, Estimate]) -> dict[str, LayerStatistics]:
    return {name: statistics(one.units(), one.per_sample) for name, one in estimates.items()}


def _gaps(
    layers: Sequence[NormLayer],
    running: Mapping[str, LayerStatistics],
    measured: Mapping[str, LayerStatistics],
) -> dict[str, Gap]:
    """Compare layer by layer, in the order of their calls."""
    by_bank = layers_by_bank(layers)
    return {
        name: gap_between(running[name], one, by_bank[name].eps) for name, one in measured.items()
    }


class _OutputSums:
    """Sums over batches of how their two outputs differ: in value, prediction and loss."""

    def __init__(self, loss: Loss | None) -> None:
        self._loss = loss
        self._loss_steps = Estimate(1)
        self._squared_difference = self._squared_deviation = 0.0
        self._same_predictions = self._predictions = 0
        self._losses = [0.0, 0.0]
        self.samples = self.batches = 0

    def add(self, first: Any, second: Any, batch: Any, count: int) -> None:
        """Add the two outputs of a batch of ``count`` samples.

        Raises:
            DataError: the output has no tensor, and there is no loss.
        """
        self.batches += 1
        self.samples += count
        a, b = (tensors_in(out) for out in (first, second))
        if not a and self._loss is None:
            raise DataError(
                message(
                    "a model that returns a tensor, to compare the outputs of the two modes",
                    f"a {type(first).__name__}",
                    "pass forward=lambda model, batch: ... that returns the output to compare",
                )
            )
        if a:
            x, y = a[0].detach().double(), b[0].detach().double()
            self._squared_difference += float((x - y).square().sum())
            self._squared_deviation += float((x - x.mean(0, keepdim=True)).square().sum())
            if x.dim() >= 2 and x.shape[1] > 1:
                same = x.argmax(1) == y.argmax(1)
                self._same_predictions += int(same.sum())
                self._predictions += same.numel()
        losses = [_loss_of(self._loss, out, batch) for out in (first, second)]
        if losses[0] is not None and losses[1] is not None:
            for i, value in enumerate(losses):
                self._losses[i] += float(value or 0.0) * count
            size = torch.tensor(float(count), dtype=torch.float64)
            step = torch.tensor([losses[1] - losses[0]], dtype=torch.float64)
            self._loss_steps.add(Moments(size, step, torch.zeros_like(step)))

    def result(self) -> OutputComparison:
        """Compare over all batches."""
        units = self._loss_steps.units()
        loss = difference = None
        if len(units.count):
            loss = (self._losses[0] / self.samples, self._losses[1] / self.samples)
            step = statistics(units)
            difference = (float(step.mean), float(step.mean_standard_error))
        deviation = self._squared_deviation
        return OutputComparison(
            math.sqrt(self._squared_difference / deviation) if deviation > 0 else math.nan,
            self._same_predictions / self._predictions if self._predictions else None,
            loss,
            difference,
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
    # Labels of other classes: the output is not scores, but such as an embedding.
    if bool(((labels >= output.shape[1]) | ((labels < 0) & (labels != IGNORED_LABEL))).any()):
        return None
    return float(F.cross_entropy(output.float(), labels.to(output.device)))
