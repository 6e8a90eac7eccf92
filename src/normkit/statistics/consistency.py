"""Compare a model in training mode with itself in evaluation mode: :func:`consistency`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import nn

from normkit.errors import DataError, StatisticsError, message
from normkit.handle import place_name
from normkit.nn.batchrenorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from normkit.statistics.batches.detached_loader import DetachedLoader
from normkit.statistics.batches.run_model import Forward
from normkit.statistics.check_arguments import (
    check_batches,
    check_function,
    check_model,
    check_samples,
)
from normkit.statistics.estimates.estimate import Estimate, statistics
from normkit.statistics.estimates.few_batches import moderate_errors
from normkit.statistics.estimates.gaps import gap_between
from normkit.statistics.estimates.layer_statistics import LayerStatistics
from normkit.statistics.layers.find import (
    NormLayer,
    find_norm_layers,
    layers_by_bank,
    running_statistics,
    unwrap,
)
from normkit.statistics.layers.preserve import is_sharded, preserve_rng
from normkit.statistics.measuring.calls import CallsEstimate
from normkit.statistics.measuring.check_statistics import check_statistics
from normkit.statistics.measuring.observer import Observer
from normkit.statistics.measuring.observing import observing
from normkit.statistics.outputs.compare import OutputSums
from normkit.statistics.outputs.losses import Loss
from normkit.statistics.printing.progress import bar
from normkit.statistics.processes.lockstep import MET, in_step
from normkit.statistics.processes.ranks import Ranks, ranks_of
from normkit.statistics.results.consistency import Consistency
from normkit.statistics.results.shared_layers import call_gaps, call_statistics, shared_layers

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
    """Compare training mode, with each batch's statistics, to evaluation mode, with running ones.

    Each batch goes through the model twice with the same weights: once with every layer
    normalizing by the batch (ghost batch normalization by its parts), once by its running
    statistics. Dropout is off in both, so the
    difference is due to the statistics. A layer's own gap is between its running statistics and
    its input in the first pass; the first layer whose gap matters is where the two modes part.
    Nothing in the model changes.

    A layer that one pass calls several times (a detector's shared head, the halves of a siamese
    network, the steps of a recurrent one) is compared call by call too; where its calls differ,
    no running statistics fit, and the result names it and the calls.

    The outputs are compared in value, relative to their deviation over all samples; in prediction,
    where they are scores; and in loss. Neither the order of the samples nor their division into
    batches changes how that is summed.

    * *Output*: the tensor that the model returns. Of a mapping, a dataclass or a named tuple, the
      entry ``logits``, else its first tensor with at least two axes; of a tuple or list likewise.
    * *Labels*: the second part of a pair ``(inputs, labels)``; of a mapping, the entry ``labels``,
      ``label``, ``targets`` or ``target``.
    * *Predictions*: the largest score, along axis 1 or the last one, for one integer label for
      each sample and position; without labels only of an output called ``logits``. Regressions
      have none.
    * *Loss*: ``loss``; else the one that the model returns, as entry ``loss``, as a tensor without
      axes that comes first in a tuple or second of two, as the whole output, or as the sum of a
      mapping of such tensors; else the cross-entropy of the scores. Labels of -100 weigh nothing.

    Detectors that return boxes in evaluation and losses in training mode are compared by these:
    ``forward=lambda model, batch: model.train()(*batch)``. Whichever mode ``forward`` sets, the
    layers normalize as the pass requires.

    Args:
        model: any module, in any mode; its layers as for :func:`normkit.recalibrate`.
        batches: as for :func:`normkit.recalibrate`, of the size used in training, as training's
            side depends on it. Each process compares its own, under FSDP in step with the others.
            Batches with one value per channel, which training mode refuses, are left out, and
            their number is named.
        samples: stop at the first batch that reaches so many; None for all there are, which of an
            endless stream never ends.
        forward: called as ``forward(model, batch)``; its result is the output.
        loss: called as ``loss(output, batch)``, the mean over the batch's samples: it weighs by
            their number.
        progress: show a bar, on a terminal.

    Returns:
        A :class:`normkit.statistics.Consistency`: ``print`` it, or read ``.layers``, ``.output``
        and ``.first_mismatch``. Batches that could not be compared, such as those whose loss is
        not finite, are named in ``.output.notes``.

    Raises:
        TypeMismatchError: ``model`` is not a module, or is scripted; ``batches`` is not an iterable
            of batches; ``forward`` or ``loss`` cannot be called, or ``loss`` returns no number; a
            batch is a list of samples, or lacks inputs that the model needs.
        OptionError: an argument outside its range.
        StatisticsError: no layer with running statistics; a model on the meta device; none that a
            batch reaches with tensors; only batches with one value per channel; a layer whose input
            was not finite; a call within another one on the same model.
        DataError: no batches; one without tensors, or on a device where the model has nothing; a
            model that returns neither a tensor nor a loss, without ``loss``.

    Source: Wu & Johnson 2021, arXiv 2105.07576, sections 3 and 4 (train-test inconsistency).

    >>> import torch
    >>> _ = torch.manual_seed(0)
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
    inner = unwrap(model)
    sharded = is_sharded(inner)
    ranks = ranks_of(None if sharded else False)
    with ranks.announcing(MET):
        check_batches(batches)
        check_function(forward, "forward", "forward(model, batch)")
        check_function(loss, "loss", "loss(output, batch)")
        check_samples(samples)
        layers, skipped = find_norm_layers(inner)
    running = running_statistics(layers)
    training: dict[str, CallsEstimate] = {}
    evaluation: dict[str, CallsEstimate] = {}
    outputs, sizes, single = OutputSums(loss), Counter[int](), Counter[str]()
    with observing(inner, layers) as observer, bar(progress) as shown:
        shown.begin(samples)
        enough = partial(_reached, outputs, samples)
        for batch, counts in _stream(batches, inner, forward, enough, ranks if sharded else None):
            observer.start({}, training if counts else {}, by_parts=True)
            # Both passes draw alike, should the model draw at all.
            with preserve_rng():
                count = observer.run(batch, forward, to_end=True)
            if counts and count and observer.single is not None:
                single[observer.single] += 1
                outputs.left_out += count
            counts = counts and bool(count) and observer.single is None
            by_batch, failure = None, None
            try:
                by_batch = outputs.read(observer.output, batch) if counts else None
            except Exception as error:
                failure = error
            # Other ranks may be in a second pass whatever this one has seen.
            if sharded or (counts and failure is None):
                observer.start(running, evaluation if counts else {}, again=True)
                observer.run(batch, forward, to_end=True)
            with ranks.announcing(MET):
                if failure is not None:
                    raise failure
                if counts and by_batch is not None:
                    outputs.add(by_batch, outputs.read(observer.output, batch), batch, count)
                    sizes[count] += 1
                    shown.at(outputs.samples + outputs.left_out)
    _check_measured(training, single, observer)
    by_bank = layers_by_bank(layers)
    eps = {name: one.eps for name, one in by_bank.items()}
    measured, later = (_measured(one, outputs.samples, eps) for one in (training, evaluation))
    check_statistics(measured, layers)
    gaps, inherited = (
        {name: gap_between(running[name], one, eps[name]) for name, one in these.items()}
        for these in (measured, later)
    )
    calls = {
        name: call_gaps(running[name], each, eps[name])
        for name, one in training.items()
        if (each := call_statistics(one, outputs.samples, eps[name]))
    }
    return Consistency(
        gaps,
        inherited,
        calls,
        shared_layers(training, layers, outputs.samples, running),
        outputs.result(),
        {name: type(one.layer) for name, one in by_bank.items()},
        [*skipped, *observer.inputs.unmeasured(training)],
        sizes,
        [*_notes(single, outputs.batches), *_simplified(layers)],
    )


def _reached(outputs: OutputSums, samples: int | None) -> bool:
    return samples is not None and outputs.samples + outputs.left_out >= samples


def _stream(
    batches: Iterable[Any],
    model: nn.Module,
    forward: Forward | None,
    enough: Callable[[], bool],
    ranks: Ranks | None,
) -> Iterator[tuple[Any, bool]]:
    """Yield batches until there are enough, and whether each counts; in step with ``ranks``."""
    if ranks is not None:
        yield from in_step(DetachedLoader(batches), ranks, model, forward, enough=enough)
        return
    for batch in DetachedLoader(batches):
        yield batch, True
        if enough():
            return


def _check_measured(
    training: Mapping[str, Estimate], single: Mapping[str, int], observer: Observer
) -> None:
    """Raise if nothing was measured.

    Raises:
        StatisticsError: training mode normalizes none of the batches, or no layer's input is known.
        DataError: there were no batches.
    """
    if training:
        return
    if single:
        raise StatisticsError(
            message(
                "batches with at least two values per channel, as training mode needs",
                f"one, at {', '.join(map(place_name, single))}",
                "pass batches of the size used in training",
            )
        )
    observer.inputs.check_reached(training, observer.batches)
    raise DataError(
        message(
            "batches that reach a layer with running statistics",
            "none",
            "pass at least one batch that is not empty",
        )
    )


def _simplified(layers: Sequence[NormLayer]) -> list[str]:
    """Name the layers that training normalizes by more than the batch of this process."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    more = {
        "a correction towards running statistics": (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d),
        "the batches of all processes": nn.SyncBatchNorm if several else (),
    }
    return [
        f"{', '.join(names)}: training normalizes by {what} too, which is left out here"
        for what, kinds in more.items()
        if (names := [place_name(one.name) for one in layers if isinstance(one.layer, kinds)])
    ]


def _notes(single: Counter[str], batches: int) -> list[str]:
    return [
        f"{n} of {batches + single.total()} batches left out: {place_name(name)} has one value per "
        "channel in them, which training mode refuses; drop_last=True leaves them out of training"
        for name, n in single.items()
    ]


def _measured(
    estimates: Mapping[str, Estimate], samples: int, eps: Mapping[str, float]
) -> dict[str, LayerStatistics]:
    measured = {}
    for name, one in estimates.items():
        units = one.units()
        result = statistics(units, one.per_sample)
        measured[name] = moderate_errors(result, len(units.count), samples, eps[name])
    return measured
