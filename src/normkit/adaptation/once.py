"""Adapt a model once, to a stream that is given: statistics recalibrated and mixed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from normkit.adaptation.handle import Adaptation, set_evaluation
from normkit.adaptation.layers import find_adaptable
from normkit.adaptation.moments import mix
from normkit.handle import Changed, Skipped, Step, run
from normkit.statistics.batches.run_model import Forward
from normkit.statistics.estimates.layer_statistics import LayerStatistics
from normkit.statistics.layers.find import NormLayer, unwrap
from normkit.statistics.layers.preserve import evaluation_mode
from normkit.statistics.layers.replace import Replacement
from normkit.statistics.recalibrate import recalibrate
from normkit.surgery.freezable import check_finite

__all__ = ["mixed_statistics", "recalibrate_once"]


def recalibrate_once(
    model: nn.Module, prior: float, batches: Iterable[Any], forward: Forward | None
) -> Adaptation:
    """Replace the running statistics of ``model`` by those of ``batches``, mixed with them."""
    inner = unwrap(model)
    layers, skipped = find_adaptable(inner, "adapt", once=True)
    if prior:
        check_finite([(one.name, one.layer) for one in layers])
    statistics, samples, unmeasured = mixed_statistics(model, layers, prior, batches, forward)
    listed = {row.name for row in skipped}
    skipped += [row for row in unmeasured if row.name not in listed]
    replaced: list[Replacement] = []

    def do() -> None:
        replaced.append(Replacement(layers, statistics))

    def undo() -> None:
        while replaced:
            replaced.pop().undo()

    mixed = f", mixed with {prior:g} remembered ones" if prior else ""
    changed = [
        Changed(name, type(one.layer), type(one.layer), note=f"{samples} samples{mixed}")
        for one in layers
        for name, _ in one.banks
        if name in statistics
    ]
    steps = [set_evaluation(model), Step(do, undo)]
    run(steps)
    return Adaptation("adapt", changed, skipped, steps)


def mixed_statistics(
    model: nn.Module,
    layers: Sequence[NormLayer],
    prior: float,
    batches: Iterable[Any],
    forward: Forward | None,
) -> tuple[dict[str, LayerStatistics], int, Sequence[Skipped]]:
    """Measure statistics of ``batches``, mix them, and leave the model as it was.

    Returns them by bank, the number of samples, and layers that were not measured.
    """
    with (
        evaluation_mode(model),
        _without_zero_momentum(layers),
        recalibrate(model, batches, samples=None, forward=forward, process_group=False) as result,
    ):
        measured = dict(result.layers)
    mixed = {}
    for one in layers:
        for name, row in one.banks:
            if name in measured:
                new = measured[name]
                count = float(result.samples)
                mean, variance = mix(prior, one.stats(row), count, (new.mean, new.variance))
                mixed[name] = new._replace(mean=mean, variance=variance)
    return mixed, result.samples, result.skipped


@contextlib.contextmanager
def _without_zero_momentum(layers: Sequence[NormLayer]) -> Iterator[None]:
    """Let layers with momentum 0, which other tools take for frozen, be measured."""
    zero = [one.layer for one in layers if getattr(one.layer, "momentum", None) == 0]
    before = [vars(layer)["momentum"] for layer in zero if "momentum" in vars(layer)]
    try:
        for layer in zero:
            vars(layer)["momentum"] = 0.1
        yield
    finally:
        for layer, momentum in zip(zero, before, strict=True):
            vars(layer)["momentum"] = momentum
