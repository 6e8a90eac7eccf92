"""Population statistics for a model that is there: :func:`recalibrate`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from normkit.errors import OptionError, StatisticsError, explain
from normkit.handle import Left
from normkit.statistics.batches import Forward, check_batches, check_samples, check_tolerance
from normkit.statistics.distributed import peers
from normkit.statistics.estimate import LayerStatistics, Units, relative_error, statistics
from normkit.statistics.observe import watched
from normkit.statistics.passes import Study, bar, check_found, within
from normkit.statistics.results import Recalibration, Told
from normkit.statistics.stats_layers import Place, find, unwrapped

__all__ = ["recalibrate"]

SETTLED = 0.1
"""Layer by layer is over when a pass moves no layer by more than this share of its error."""

SAME = 1e-3
"""Below this share a layer was given the same twice, whatever a device's order of adding does."""


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
    r"""Replace remembered means and variances by those of the data under the weights as they are.

    An average along training remembers what former weights gave, and weighs the last few batches
    most. This takes the moments of up to ``samples`` samples under the final weights and merges
    them exactly, the variance between batches included,

    .. math::
        \mu = \sum_b \frac{n_b}{N}\,\mu_b, \qquad
        \sigma^2 = \frac{1}{N - 1} \sum_b \left(M_b + n_b\,(\mu_b - \mu)^2\right),

    with :math:`M_b = \sum (x - \mu_b)^2`, in float64, :math:`\mathrm{E}[x^2] - \mathrm{E}[x]^2`
    nowhere. Weights are not touched, no gradient is computed and dropout is off.

    Every layer of ``torch.nn`` and of this package that remembers moments takes part, instance
    normalization that tracks too, and others that :func:`normkit.statistics.memory_of` knows. A
    layer used several times in one pass gets the moments of all its inputs together. Frozen
    layers are left alone: by :func:`normkit.freeze`, with momentum 0, or in evaluation mode
    within a model in training mode.

    By default each layer is measured with the layers before it normalizing by each batch's own
    moments, as in training (of the whole batch in this process, also where training normalizes by
    ghost batches or across processes). The result then does not depend on the order of the batches
    nor on which process sees which; but with batches of a few samples the layers behind inherit
    their noise. ``layerwise=True`` measures them as evaluation will run, with the layers before on
    population statistics: right with any batch size, in several passes over the same data, until
    they agree (3 for LeNet's 4 layers, 14 for ResNet-18's 20; never more than layers and one).

    Args:
        model: any module in any mode; a parallel or compiled wrapper is looked through.
        batches: an iterable of batches, such as a DataLoader. Of a tuple or list the first
            element is the input; of a mapping, those entries that ``model.forward`` names. A
            DataLoader itself is left alone: one in the middle of an epoch goes on as it would.
        samples: stop at the first batch that reaches so many, all processes together; None for
            all there are. Fewer than a batch means one batch.
        tolerance: stop earlier, as soon as the worst layer's relative standard error is below
            it: 0.01 for means known to 1 % of a deviation and variances to 1 %.
        forward: called as ``forward(model, batch)`` in place of the rule for batches.
        layerwise: as said; ``batches`` must allow to be gone over several times.
        process_group: processes whose shares are merged, however unequal or empty; None for all
            of an initialized ``torch.distributed``, which all must call this; False for this
            process alone. All end with the same bits.
        progress: show a bar, on a terminal.

    Returns:
        A :class:`normkit.statistics.Recalibration`: ``print`` it for what moved most;
        ``.layers`` maps each layer's name to its statistics with their standard errors; and
        ``.undo()`` puts back the very bits that were. As a context manager it undoes at the end.

    Raises:
        TypeMismatchError: ``model`` is no module or scripted; ``batches`` are no batches.
        OptionError: an argument outside its range; ``layerwise`` with what can be gone over
            only once.
        StatisticsError: no layer to recalibrate; no batches; a layer whose input was not finite,
            or has moments too large for the type it keeps them in; from within another.
        DataError: a batch without tensors, or on a device where the model has nothing.

        The model is as it was after any exception, an interruption among them.

    Source: Wu & Johnson 2021, arXiv 2105.07576, section 3 (PreciseBN); merging: Chan, Golub &
    LeVeque 1979.

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    >>> data = [torch.tensor([[0.0, 1.0], [2.0, 5.0]]), torch.tensor([[4.0, 0.0], [6.0, 2.0]])]
    >>> found = recalibrate(model, data, samples=None)
    >>> model[0].running_mean, model[0].running_var
    (tensor([3., 2.]), tensor([6.6667, 4.6667]))
    >>> found.layers["0"].count, found.samples
    (4, 4)
    >>> found.undo()
    >>> model[0].running_mean
    tensor([0., 0.])
    """
    check_samples(samples)
    check_tolerance(tolerance)
    check_batches(batches)
    if layerwise and isinstance(batches, Iterator):
        raise OptionError(
            explain(
                "layerwise=True goes over the batches several times",
                f"a {type(batches).__name__}, which can be gone over once",
                "pass a list or a DataLoader",
            )
        )
    inner = unwrapped(model)
    places, left = find(inner)
    group = peers(process_group)
    begin = time.perf_counter()
    with watched(inner, places) as watch, bar(progress and group.rank == 0) as shown:
        study = Study(watch, batches, forward, group, shown)
        units = study.go_over({}, samples, tolerance)
        found = first = _found(places, units)
        while layerwise and study.passes <= len(places):
            before, moved = found, study.moved
            found = _found(places, study.go_over(found, None, None))
            steps = _moved(places, before, found)
            study.moved = max(steps)
            # The layer that comes first hears nothing of the others: where it moves, the batches
            # are others, and passes agree no better than samples do.
            others = min(steps) > SAME and study.passes > 2
            if study.moved < SETTLED or (others and study.moved > moved / 2):
                break
    found = {name: _as_sure_as(found[name], first.get(name, found[name])) for name in found}
    left += [
        Left(name, type(place.layer), "its forward was never called" if row is None
             else "no batch of this domain came")
        for place in places
        for name, row in place.banks
        if name not in found
    ]  # fmt: skip
    told = Told(study.samples, study.number, study.passes, time.perf_counter() - begin)
    numbers = {name: len(one.count) for name, one in units.items()}
    return Recalibration(places, found, left, numbers, told)


def _as_sure_as(found: LayerStatistics, first: LayerStatistics) -> LayerStatistics:
    """With the standard errors of the first pass, where each batch was normalized by itself.

    What a batch shows of itself then goes into the layers before, too, as it does when all
    batches together are normalized by their own population: to first order the two estimates have
    the same influence function. Spread under one common population leaves that out, and says too
    much for the layers behind.
    """
    return found._replace(
        mean_standard_error=first.mean_standard_error,
        variance_standard_error=first.variance_standard_error,
    )


def _found(places: Sequence[Place], units: Mapping[str, Units]) -> dict[str, LayerStatistics]:
    """Merge, and refuse what is no statistics.

    Raises:
        StatisticsError: nothing was seen, a single value, or values that are not finite.
    """
    if not units:
        raise StatisticsError(
            explain(
                "statistics need at least one batch that reaches a layer which remembers them",
                "none",
                "pass batches that are not empty; an iterator that was used up before is",
            )
        )
    of = within(places)
    found = {name: statistics(units[name], of[name][1]) for name in units}
    check_found(found, places)
    return found


def _moved(
    places: Sequence[Place],
    before: Mapping[str, LayerStatistics],
    after: Mapping[str, LayerStatistics],
) -> list[float]:
    """How far a pass moved each layer, in shares of what it is unsure of anyway."""
    steps = []
    for name, (place, _) in within(places).items():
        if name not in after or name not in before:
            continue
        a, b, eps = after[name], before[name], place.eps
        step = LayerStatistics(
            a.mean, a.variance, (a.mean - b.mean).abs(), (a.variance - b.variance).abs(), a.count
        )
        unsure = relative_error(a, eps)
        far = relative_error(step, eps)
        steps.append(far / unsure if unsure > 0 else (math.inf if far > 0 else 0.0))
    return steps
