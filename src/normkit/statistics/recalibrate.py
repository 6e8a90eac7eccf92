"""Replace a model's running statistics by those of data: :func:`recalibrate`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from normkit.errors import OptionError, StatisticsError, message
from normkit.statistics.arguments import (
    check_batches,
    check_function,
    check_model,
    check_samples,
    check_tolerance,
)
from normkit.statistics.batches import Forward
from normkit.statistics.calls import shared_layers
from normkit.statistics.distributed import ranks_of
from normkit.statistics.estimate import LayerStatistics, relative_error
from normkit.statistics.lockstep import check_group
from normkit.statistics.observe import observing
from normkit.statistics.passes import Passes, bar, check_statistics
from normkit.statistics.results import Cost, Recalibration
from normkit.statistics.stats_layers import (
    NormLayer,
    find_norm_layers,
    layers_by_bank,
    unwrap,
)

__all__ = ["recalibrate"]

CONVERGED = 0.1
"""Layerwise passes end when one moves no layer by more than this share of its standard error."""

SAME = 1e-3
"""Below this share two passes gave a layer the same input, up to a device's order of summation."""


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    samples: int | None = 10_000,
    tolerance: float | None = None,
    forward: Forward | None = None,
    layerwise: bool = False,
    process_group: Any = None,
    progress: bool = True,
) -> Recalibration:
    r"""Replace running means and variances by those of the data under the current weights.

    An average along training depends on former weights, and weighs the last few batches most.
    This takes the moments of up to ``samples`` samples under the current weights and merges
    them exactly, the variance between batches included,

    .. math::
        \mu = \sum_b \frac{n_b}{N}\,\mu_b, \qquad
        \sigma^2 = \frac{1}{N - 1} \sum_b \left(M_b + n_b\,(\mu_b - \mu)^2\right),

    with :math:`M_b = \sum (x - \mu_b)^2`, in float64; :math:`\mathrm{E}[x^2] - \mathrm{E}[x]^2`
    appears nowhere. Weights do not change, no gradient is computed and dropout is off.

    Every layer of ``torch.nn`` and of this package that keeps running statistics takes part,
    instance normalization that tracks too, and others that :func:`normkit.statistics.stats_spec`
    describes. A layer used several times in one pass gets the moments of all its inputs together;
    where these differ, so that no one mean and variance fits, ``shared`` names it (by the batches
    of this process).
    Frozen layers are skipped: by :func:`normkit.freeze`, with momentum 0, in evaluation mode
    within a model in training mode, or kept in it by the model's own ``train()``.

    By default each layer is measured while the layers before it normalize by each batch's own
    moments, as in training (of the whole batch in this process, also where training normalizes by
    ghost batches or across processes). The result then does not depend on the order of the batches
    nor on which process sees which; but with batches of a few samples later layers inherit their
    noise. ``layerwise=True`` measures them as evaluation will run, with the layers before on
    population statistics: correct with any batch size, in several passes over the same data, until
    they agree (3 for LeNet's 4 layers, 14 for ResNet-18's 20; at most one more than layers).

    Args:
        model: any module in any mode; a parallel or compiled wrapper is unwrapped.
        batches: an iterable of batches, such as a DataLoader. The input is the first element of
            a tuple or list; of a mapping, the entries that ``model.forward`` names. A DataLoader
            is copied, with a stream's position, so one in the middle of an epoch is not disturbed.
            Of an iterator exactly as many are taken as ``.batches`` tells.
        samples: stop at the first batch that reaches so many, all processes together; None for
            all there are. Fewer than a batch means one batch. Several processes count together
            at intervals (docs/scale.md): where batches grow on the way, up to 32 more of each
            may be read.
        tolerance: stop earlier, as soon as the worst layer's relative standard error is below
            it: 0.01 for means known to 1 % of a deviation and variances to 1 %.
        forward: called as ``forward(model, batch)`` in place of the rule for batches.
        layerwise: see above. ``batches`` must be re-iterable.
        process_group: processes whose shares are merged, however unequal or empty; None for all
            of an initialized ``torch.distributed``, which all must call this; False for this
            process alone. All end with the same bits. They stop together where none of their
            batches is larger than its earlier ones; else up to 32 batches later. Under FSDP, where
            each forward needs all processes, those with fewer batches run along uncounted.
        progress: show a bar, on a terminal.

    Returns:
        A :class:`normkit.statistics.Recalibration`: ``print`` it for the largest changes;
        ``.layers`` maps each layer's name to its statistics with their standard errors; and
        ``.undo()`` restores the former ones bit for bit, as it does on exit when used as a
        context manager.

    Raises:
        TypeMismatchError: ``model`` is not a module, or is scripted; ``batches`` is not an
            iterable of batches.
        OptionError: an argument outside its range; ``layerwise`` with an iterator; a
            ``process_group`` without all processes that share the model's weights (FSDP).
        StatisticsError: no layer to recalibrate; no batches; a layer whose input was not finite,
            or has moments too large for the type it keeps them in; a call within another one on
            the same model.
        DataError: a batch without tensors, or on a device where the model has nothing; a loader in
            the middle of an epoch whose position cannot be copied, before anything is drawn.

        The model is restored after any exception or interruption.

    Source: Wu & Johnson 2021, arXiv 2105.07576, section 3 (PreciseBN); merging: Chan, Golub &
    LeVeque 1979.

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    >>> data = [torch.tensor([[0.0, 1.0], [2.0, 5.0]]), torch.tensor([[4.0, 0.0], [6.0, 2.0]])]
    >>> result = recalibrate(model, data, samples=None)
    >>> model[0].running_mean, model[0].running_var
    (tensor([3., 2.]), tensor([6.6667, 4.6667]))
    >>> result.layers["0"].count, result.samples
    (4, 4)
    >>> result.undo()
    >>> model[0].running_mean
    tensor([0., 0.])
    """
    check_model(model, "recalibrate", batches)
    check_batches(batches)
    check_function(forward, "forward", "forward(model, batch)")
    check_samples(samples)
    check_tolerance(tolerance)
    if layerwise and isinstance(batches, Iterator):
        raise OptionError(
            message(
                "re-iterable batches for layerwise=True, which makes several passes",
                f"a {type(batches).__name__}, which can be iterated over once",
                "pass a list or a DataLoader",
            )
        )
    inner = unwrap(model)
    layers, skipped = find_norm_layers(inner)
    ranks = ranks_of(process_group)
    check_group(inner, process_group)
    start = time.perf_counter()
    with observing(inner, layers) as observer, bar(progress and ranks.rank == 0) as shown:
        passes = Passes(observer, batches, forward, ranks, shown)
        first = passes.first_pass(samples, tolerance)
        observer.inputs.check_reached(first, observer.batches)
        first = _checked(layers, first)
        units = passes.units
        result = _repeat(layers, passes, first) if layerwise else first
    for name, one in result.items():
        result[name] = _with_errors_of(one, first.get(name, one))
    skipped += observer.inputs.unmeasured(result)
    shared = shared_layers(observer.estimates, layers, passes.samples)
    seconds = time.perf_counter() - start
    cost = Cost(passes.samples, passes.batches, passes.count, seconds)
    return Recalibration(layers, result, skipped, units, cost, shared)


def _checked(
    layers: Sequence[NormLayer], statistics: dict[str, LayerStatistics]
) -> dict[str, LayerStatistics]:
    """Return ``statistics``, once checked.

    Raises:
        StatisticsError: there are none, or some are not finite or not defined.
    """
    if not statistics:
        raise StatisticsError(
            message(
                "at least one batch that reaches a layer with running statistics",
                "none",
                "pass non-empty batches; an iterator can be used only once",
            )
        )
    check_statistics(statistics, layers)
    return statistics


def _repeat(
    layers: Sequence[NormLayer], passes: Passes, first: dict[str, LayerStatistics]
) -> dict[str, LayerStatistics]:
    """Repeat the pass with the layers on the statistics of the pass before, until they agree."""
    result, step = first, math.inf
    while passes.count <= len(layers):
        before, step_before = result, step
        result = _checked(layers, passes.repeat_pass(before))
        steps = _steps(layers, before, result)
        step = max(steps)
        # The layer that comes first does not depend on the others: where it moves, the batches
        # differ between passes, which then agree no better than samples do.
        other_batches = min(steps) > SAME and passes.count > 2
        if step < CONVERGED or (other_batches and step > step_before / 2):
            break
    return dict(result)


def _with_errors_of(result: LayerStatistics, first: LayerStatistics) -> LayerStatistics:
    """Take over the standard errors of the first pass, where each batch normalizes itself.

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
) -> list[float]:
    """Compute how far a pass moved each layer, relative to its standard error."""
    steps = []
    for name, one in layers_by_bank(layers).items():
        if name not in after or name not in before:
            continue
        a, b = after[name], before[name]
        step = LayerStatistics(
            a.mean, a.variance, (a.mean - b.mean).abs(), (a.variance - b.variance).abs(), a.count
        )
        error, distance = relative_error(a, one.eps), relative_error(step, one.eps)
        steps.append(distance / error if error > 0 else (math.inf if distance > 0 else 0.0))
    return steps
