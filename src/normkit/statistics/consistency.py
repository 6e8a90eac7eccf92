"""How far a model in training mode and in evaluation mode disagree: :func:`consistency`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from normkit.errors import DataError, explain
from normkit.statistics.bar import bar
from normkit.statistics.estimate import Estimate, LayerStatistics, statistics
from normkit.statistics.feeding import Forward, check_batches
from normkit.statistics.gaps import Consistency, Gap, gap
from normkit.statistics.options import check_samples
from normkit.statistics.outputs import Loss, Outputs
from normkit.statistics.remembering import Place, find, unwrapped
from normkit.statistics.study import check_found, within
from normkit.statistics.surroundings import apart
from normkit.statistics.watching import watched

__all__ = ["consistency"]


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
