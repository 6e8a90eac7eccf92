"""Replace a model's running statistics by those of data: :func:`recalibrate`."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from normkit.errors import OptionError, StatisticsError, message
from normkit.statistics.batches.run_model import Forward
from normkit.statistics.check_arguments import (
    check_batches,
    check_function,
    check_model,
    check_samples,
    check_tolerance,
)
from normkit.statistics.estimates.bias import LARGE_BIAS, MAX_BIAS, state_bias
from normkit.statistics.estimates.layer_statistics import LayerStatistics
from normkit.statistics.layers.find import (
    NormLayer,
    find_norm_layers,
    layers_by_bank,
    unwrap,
)
from normkit.statistics.layers.preserve import is_sharded
from normkit.statistics.measuring.check_statistics import check_measurement
from normkit.statistics.measuring.groups import group_errors
from normkit.statistics.measuring.layerwise import repeat, with_errors_of
from normkit.statistics.measuring.observing import observing
from normkit.statistics.measuring.passes import FIRST_COUNTS, Passes
from normkit.statistics.printing.progress import bar
from normkit.statistics.printing.tables import format_percent, format_size
from normkit.statistics.processes.lockstep import check_group
from normkit.statistics.processes.ranks import ranks_of
from normkit.statistics.results.recalibration import Cost, Recalibration
from normkit.statistics.results.shared_layers import shared_layers

__all__ = ["recalibrate"]

FEW = 5
"""With fewer samples in all, a variance of normal values is not known to ± 75 %: √(2 / (n − 1))."""


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    samples: int | None = 10_000,
    tolerance: float | None = None,
    forward: Forward | None = None,
    layerwise: bool | None = None,
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
    nor on which process sees which; but later layers inherit a bias of about one part in
    the samples of a batch, which no standard error shows and the result estimates (``.bias``).
    ``layerwise=True`` measures them as evaluation will run, with the layers before on population
    statistics: correct with any batch size, in several passes over the same data, until they agree
    (3 for LeNet's 4 layers, 14 for ResNet-18's 20; at most one more than layers, or 20 more than
    that where a layer is called several times, as on what it made itself). With
    batches of less than ten samples, or where the bias would be more than ``tolerance`` or 60 %
    (batches that come in an order), this is done without being asked for, and the result says so;
    with less than ten samples the standard errors take as many passes again. ``layerwise=False``
    takes one pass whatever the bias, which it states; with less than ten samples its standard
    errors hold for the first layers only.

    Args:
        model: any module in any mode; a parallel or compiled wrapper is unwrapped.
        batches: an iterable of batches, such as a DataLoader. The input is the first element of
            a tuple or list; of a mapping, the entries that ``model.forward`` names. A DataLoader
            is copied, with a stream's position, so one in the middle of an epoch is not disturbed.
            Of an iterator exactly as many are taken as ``.batches`` tells.
        samples: stop at the first batch that reaches so many, all processes together; None for all
            there are, which of an endless stream never ends. Fewer than a batch means one batch.
            Several processes count together at intervals (docs/scale.md): where batches grow on the
            way, about as many more as before may be read, of each process 32 at most.
        tolerance: stop earlier, as soon as the worst layer's relative standard error is below
            it: 0.01 for means known to 1 % of a deviation and variances to 1 %. Below 1.
        forward: called as ``forward(model, batch)`` in place of the rule for batches.
        layerwise: see above; None to decide by the bias. True needs re-iterable ``batches``.
        process_group: processes whose shares are merged, however unequal or empty; None for all
            of an initialized ``torch.distributed``, which all must call this; False for this
            process alone. All end with the same bits. They stop together where none of their
            batches is larger than its earlier ones; else later, likewise. Under FSDP, where
            each forward needs all processes, those with fewer batches run along uncounted.
        progress: show a bar, on a terminal.

    Returns:
        A :class:`normkit.statistics.Recalibration`: ``print`` it for the largest changes;
        ``.layers`` maps each layer's name to its statistics with their standard errors; and
        ``.undo()`` restores the former ones bit for bit, as it does on exit when used as a
        context manager. Counts of batches (``num_batches_tracked``) become the number of these
        batches, so that averages that go by them continue from here; it restores them too.

    Warns:
        UserWarning: fewer than five samples in all, with how badly a variance is known; a bias
            above ``tolerance`` or 60 %, from an iterator; layers that still move after the last
            pass.

    Raises:
        TypeMismatchError: ``model`` is not a module, or is scripted; ``batches`` is not an iterable
            of batches, such as a data set or a single batch; ``forward`` cannot be called; a batch
            is a list of samples, or lacks inputs that the model needs.
        OptionError: an argument outside its range; ``layerwise`` with an iterator; a
            ``process_group`` without all processes that share the model's weights (FSDP).
        StatisticsError: no layer to recalibrate; a model on the meta device; no batches; a layer
            whose input was not finite, or has moments too large for the type it keeps them in;
            batches of less than ten samples from an iterator, for a model with layers behind
            others; a call within another one on the same model.
        DataError: a batch without tensors, or on a device where the model has nothing; a loader in
            the middle of an epoch whose position cannot be copied, before anything is drawn.

        The model is restored after any exception or interruption. Errors of the model itself and
        of the loader keep their type; a note tells which batch raised them.

    Source: Wu & Johnson 2021, arXiv 2105.07576, section 3 (PreciseBN); merging: Chan, Golub &
    LeVeque 1979.

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    >>> data = torch.arange(24.0).view(12, 2).split(4)
    >>> result = recalibrate(model, data, samples=None)
    >>> model[0].running_mean, model[0].running_var
    (tensor([11., 12.]), tensor([52., 52.]))
    >>> result.layers["0"].count, result.batches
    (12, 3)
    >>> result.undo()
    >>> model[0].running_mean
    tensor([0., 0.])
    """
    check_model(model, "recalibrate", batches)
    inner, ranks = unwrap(model), ranks_of(process_group)
    with ranks.announcing(FIRST_COUNTS[is_sharded(inner)]):
        check_batches(batches)
        check_function(forward, "forward", "forward(model, batch)")
        check_samples(samples)
        check_tolerance(tolerance)
        _check_repeats(layerwise, batches)
        layers, skipped = find_norm_layers(inner)
        check_group(inner, process_group)
    start = time.perf_counter()
    with observing(inner, layers) as observer, bar(progress and ranks.rank == 0) as shown:
        passes = Passes(observer, batches, forward, ranks, shown)
        errors = passes.first_pass(samples, tolerance)
        observer.inputs.check_reached(errors, observer.batches)
        errors = check_measurement(layers, errors)
        stated = state_bias(errors, {name: one.eps for name, one in layers_by_bank(layers).items()})
        units, bias = passes.units, max(one.bias for one in stated.values())
        lost = max(one.bias for one in errors.values())
        few = lost > MAX_BIAS and lost * passes.without_remainders() > MAX_BIAS * (1 + 1e-9)
        limit = min(tolerance or math.inf, LARGE_BIAS if layerwise is None else math.inf)
        switch = layerwise is None and (few or bias > limit)
        if switch and not passes.begins_again():
            if few:
                raise _too_small(passes.samples / passes.batches, bias)
            switch = False
        result = repeat(layers, passes, errors) if layerwise or switch else stated
        shared = shared_layers(observer.estimates, layers, passes.own_samples)
        measuring = passes.count
        # Some layers may be reached only in a later pass.
        units = passes.units | units
        if few and layerwise is not False:
            errors = group_errors(layers, passes, result)
            units |= passes.units
    result = {name: with_errors_of(one, errors.get(name, one)) for name, one in result.items()}
    skipped += observer.inputs.unmeasured(result)
    seconds = time.perf_counter() - start
    error_passes = passes.count - measuring
    cost = Cost(passes.samples, passes.batches, measuring, seconds, error_passes)
    # Before anything is written, for those who make warnings errors.
    _warn(layers, result, cost, tolerance, limit)
    avoided = bias if switch else 0.0
    return Recalibration(layers, result, skipped, units, cost, shared, avoided)


def _check_repeats(layerwise: bool | None, batches: Iterable[Any]) -> None:
    if layerwise and isinstance(batches, Iterator):
        raise OptionError(
            message(
                "re-iterable batches for layerwise=True, which makes several passes",
                f"a {type(batches).__name__}, which can be iterated over once",
                "pass a list or a DataLoader",
            )
        )


def _too_small(size: float, bias: float) -> StatisticsError:
    return StatisticsError(
        message(
            f"batches of at least {1 / MAX_BIAS:.0f} samples, as later layers inherit a bias "
            "of about one part in that many; or batches that can be iterated over again, to "
            "measure layer by layer",
            "batches that may not be iterated over again, of "
            f"{format_size(size)} samples each: off by about {format_percent(bias)}",
            "pass a list or a DataLoader, or larger batches; no statistics were changed",
        )
    )


def _warn(
    layers: Sequence[NormLayer],
    result: Mapping[str, LayerStatistics],
    cost: Cost,
    tolerance: float | None,
    limit: float,
) -> None:
    """Warn if the statistics are hardly known, or less well than ``tolerance`` says."""
    by_bank = layers_by_bank(layers)
    pooled = [one.count for name, one in result.items() if not by_bank[name].per_sample]
    few = min([cost.samples, *pooled]) if pooled else FEW
    if few < FEW:
        known = f"to ± {format_percent(math.sqrt(2 / (few - 1)))}" if few > 1 else "not at all"
        warnings.warn(
            f"running statistics replaced by those of {few} samples, from which a variance is "
            f"known {known}; pass more samples",
            stacklevel=3,
        )
    bias = max(one.bias for one in result.values())
    if bias > limit:
        but = "" if tolerance is None else f"tolerance={tolerance} bounds the standard error, but "
        warnings.warn(
            f"{but}batches of {format_size(cost.samples / cost.batches)} samples, which can be "
            "iterated over only once, may put later layers off by about "
            f"{format_percent(bias)}; pass a list or a DataLoader, or larger or shuffled batches",
            stacklevel=3,
        )
