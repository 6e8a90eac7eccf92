"""Statistics layer by layer: passes repeated until they agree, and their standard errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence

import torch

from normkit.errors import message
from normkit.handle import place_name
from normkit.statistics.estimates.layer_statistics import LayerStatistics, relative_error
from normkit.statistics.layers.find import NormLayer, layers_by_bank
from normkit.statistics.measuring.check_statistics import check_measurement
from normkit.statistics.measuring.passes import Passes

__all__ = ["repeat", "with_errors_of"]

UNUSABLE = 0.5
"""Bias from which a first pass says nothing of a layer, whose input may have been constant."""

CONVERGED = 0.1
"""Passes end when one moves no layer by more than this share of its standard error."""

AGAIN = 20
"""Passes beyond the number of layers, where a layer may be called on what it made itself."""


def repeat(
    layers: Sequence[NormLayer], passes: Passes, first: dict[str, LayerStatistics]
) -> dict[str, LayerStatistics]:
    """Repeat the pass with the layers on the statistics of the pass before, until they agree.

    A pass is right in every layer whose predecessors were right in the one before, so where each
    is called once, all are right after one more pass than there are layers, whatever the first was.

    A layer that is called again may get what it made itself. Then its statistics are those that
    reproduce themselves, which passes approach and need not reach: up to ``AGAIN`` more are made,
    and a warning says so if they did not do.

    Warns:
        UserWarning: layers whose statistics still move.
    """
    result, step = _start(first), math.inf
    while True:
        before, step_before = result, step
        raw = passes.repeat_pass(before)
        result = _finite(raw)
        steps = _steps(layers, before, result) if result is raw else {}
        step = max(steps.values(), default=math.inf)
        # Of other batches two passes agree no better than samples do.
        slows = passes.count > 2 and step > step_before / 2
        if step < CONVERGED or (slows and passes.batches_differ()):
            break
        if (over := passes.count - len(layers)) > 0:
            again = passes.calls_again()
            if again and over > AGAIN:
                _warn_if_moving(steps, passes.count)
            if not again or over > AGAIN:
                break
    return dict(check_measurement(layers, raw))


def _warn_if_moving(steps: Mapping[str, float], passes: int) -> None:
    moving = [f"{place_name(name)} by {step:.1f}" for name, step in steps.items() if step > 1]
    if moving:
        more = f" and {len(moving) - 5} more" if len(moving) > 5 else ""
        warnings.warn(
            message(
                "statistics that come to rest, pass after pass",
                f"layers that still move after {passes} passes, in standard errors: "
                f"{', '.join(moving[:5])}{more}, as where one gets what it made itself",
                "give each call a layer of its own, or choose layerwise=False",
            ),
            stacklevel=3,
        )


def _start(first: dict[str, LayerStatistics]) -> dict[str, LayerStatistics]:
    """Return what to begin with: mean 0 and variance 1 where the first pass is unusable.

    Divided by the deviation of an input that was constant, later layers would get huge values.
    Nor the running statistics, which may differ between ranks: these would not stop together.
    """
    return _standard_where(first, {n for n, s in first.items() if s.bias >= UNUSABLE})


def _finite(statistics: dict[str, LayerStatistics]) -> dict[str, LayerStatistics]:
    """Return ``statistics``, or a copy without what overflowed behind a layer not yet right."""
    bad = {n for n, s in statistics.items() if not (s.mean + s.variance).isfinite().all()}
    return _standard_where(statistics, bad)


def _standard_where(
    statistics: dict[str, LayerStatistics], names: Collection[str]
) -> dict[str, LayerStatistics]:
    """Return ``statistics``, or a copy with mean 0 and variance 1 in the layers of these names."""
    return statistics if not names else {
        name: s._replace(mean=torch.zeros_like(s.mean), variance=torch.ones_like(s.variance))
        if name in names else s
        for name, s in statistics.items()
    }  # fmt: skip


def with_errors_of(result: LayerStatistics, first: LayerStatistics) -> LayerStatistics:
    """Take over the standard errors of a pass where each batch, or group, normalizes itself.

    What a batch deviates by then affects the layers before, too, as it does when all batches
    together are normalized by their own population: to first order the two estimates have the
    same influence function. The spread under one common population leaves that out, and is too
    small for later layers.
    """
    return result._replace(
        mean_standard_error=first.mean_standard_error,
        variance_standard_error=first.variance_standard_error,
    )


def _steps(
    layers: Sequence[NormLayer],
    before: Mapping[str, LayerStatistics],
    after: Mapping[str, LayerStatistics],
) -> dict[str, float]:
    """Compute how far a pass moved each layer, relative to its standard error."""
    steps = {}
    for name, one in layers_by_bank(layers).items():
        if name not in after or name not in before:
            continue
        a, b = after[name], before[name]
        step = LayerStatistics(
            a.mean, a.variance, (a.mean - b.mean).abs(), (a.variance - b.variance).abs(), a.count
        )
        error, distance = relative_error(a, one.eps), relative_error(step, one.eps)
        steps[name] = distance / error if error > 0 else (math.inf if distance > 0 else 0.0)
    return steps
