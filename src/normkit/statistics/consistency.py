"""How far a model in training mode and in evaluation mode disagree: :func:`consistency`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit.core.moments import Moments
from normkit.errors import DataError, explain
from normkit.statistics.agreement import Consistency, Gap, OutputGap, gap
from normkit.statistics.batches import Forward, check_batches, check_samples, leaves
from normkit.statistics.estimate import Estimate, LayerStatistics, statistics
from normkit.statistics.observe import watched
from normkit.statistics.passes import bar, check_found, within
from normkit.statistics.preserve import apart
from normkit.statistics.stats_layers import Place, find, unwrapped

__all__ = ["Loss", "Outputs", "consistency"]


def consistency(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    samples: int | None = 2_000,
    forward: Forward | None = None,
    loss: Loss | None = None,
    progress: bool = True,
) -> Consistency:
    """Compare training mode, by each batch's statistics, with evaluation mode, by remembered ones.

    Each batch goes through the model twice with the same weights: once with every layer
    normalizing by the batch, once by what it remembers. Dropout is off in both, so what differs
    is the statistics. A layer's own gap is between what it remembers and what the first pass
    shows it; where the first one that matters stands is where the two modes part. Nothing in the
    model changes.

    Args:
        model: any module, in any mode; its layers as for :func:`normkit.recalibrate`.
        batches: as for :func:`normkit.recalibrate`, of the size used in training, since that
            is what the training side depends on.
        samples: stop at the first batch that reaches so many; None for all there are.
        forward: called as ``forward(model, batch)``; its result is the output.
        loss: called as ``loss(output, batch)``, the mean over the batch. Without it, batches
            (images, integer labels) get the cross-entropy of their scores.
        progress: show a bar, on a terminal.

    Returns:
        A :class:`normkit.statistics.Consistency`: ``print`` it; ``.layers``, ``.output`` and
        ``.parts_at`` hold what it says.

    Raises:
        As :func:`normkit.recalibrate`; and DataError where the model gives back no tensor and no
        ``loss`` says what to compare.

    Source: Wu & Johnson 2021, arXiv 2105.07576, sections 3 and 4 (train-test inconsistency).

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2))
    >>> data = [5 + torch.randn(50, 4) for _ in range(20)]
    >>> consistency(model, data).parts_at                   # never trained: remembers 0 and 1
    '0'
    >>> from normkit.statistics import recalibrate
    >>> done = recalibrate(model, data)
    >>> print(consistency(model, data).parts_at)
    None
    """
    check_samples(samples)
    check_batches(batches)
    inner = unwrapped(model)
    places, left = find(inner)
    remembered = _remembered(places)
    with watched(inner, places) as watch, bar(progress) as shown:
        own: dict[str, Estimate] = {}
        arriving: dict[str, Estimate] = {}
        outputs = Outputs(loss)
        seen = 0
        shown.begin(samples)
        for batch in apart(batches):
            watch.start({}, own)
            count = watch.run(batch, forward, whole=True)
            if not count:
                continue
            by_batch = watch.output
            watch.start(remembered, arriving)
            watch.run(batch, forward, whole=True)
            outputs.add(by_batch, watch.output, batch, count)
            seen += count
            shown.at(seen)
            if samples is not None and seen >= samples:
                break
    if not own:
        raise DataError(
            explain(
                "modes are compared on batches that reach a layer which remembers statistics",
                "none",
                "pass at least one batch that is not empty",
            )
        )
    of = within(places)
    check_found({name: statistics(one.units(), of[name][1]) for name, one in own.items()}, places)
    kinds = {name: type(place.layer) for place in places for name, _ in place.banks}
    layers, later = (_gaps(places, remembered, part) for part in (own, arriving))
    return Consistency(layers, later, outputs.told(), kinds, left, seen, outputs.batches)


def _remembered(places: Sequence[Place]) -> dict[str, LayerStatistics]:
    found = {}
    for place in places:
        for name, row in place.banks:
            mean, variance = place.remembered(row)
            none = torch.zeros_like(mean)
            found[name] = LayerStatistics(mean, variance, none, none, 0)
    return found


def _gaps(
    places: Sequence[Place],
    remembered: Mapping[str, LayerStatistics],
    estimates: Mapping[str, Estimate],
) -> dict[str, Gap]:
    """By layer, in the order of their calls."""
    eps = {name: place.eps for place in places for name, _ in place.banks}
    return {
        name: gap(remembered[name], statistics(seen.units(), seen.within), eps[name])
        for name, seen in estimates.items()
    }


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
