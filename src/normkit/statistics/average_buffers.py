"""Merge the running statistics of several processes: :func:`average_buffers`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normkit.core.moments import Moments
from normkit.errors import NormkitError, StatisticsError, message
from normkit.handle import Changed, Handle, Skipped, Step, place_name, run
from normkit.statistics.estimates.estimate import merge_shares
from normkit.statistics.layers.find import NormLayer, find_norm_layers, unwrap
from normkit.statistics.layers.preserve import overwrite
from normkit.statistics.measuring.check_statistics import check_range
from normkit.statistics.printing.tables import format_deviations
from normkit.statistics.processes.ranks import Ranks, fingerprint, ranks_of

__all__ = ["average_buffers"]


def average_buffers(model: nn.Module, process_group: Any = None) -> Handle:
    r"""Merge the running statistics that the processes of a group have collected; in place.

    .. math::
        \mu = \frac{\sum_p w_p \mu_p}{\sum_p w_p},\qquad
        \sigma^2 = \frac{\sum_p w_p \left(\sigma_p^2 + (\mu_p - \mu)^2\right)}{\sum_p w_p}

    The variance within the processes and that between them: an average of the variances alone
    is too small wherever the processes see different data. All processes end with the same bits.
    A process weighs as much as batches weigh in its averages, by its ``num_batches_tracked``:
    one without batches counts for nothing. Where a layer does not count, as instance
    normalization, which also averages over samples and so has no variance between, all weigh the
    same. The counter becomes the largest of all processes.

    ``DistributedDataParallel`` does something else. By default (``broadcast_buffers=True``) each
    forward pass overwrites every process's statistics by those of the first, so the model
    keeps the first one's share of the data and loses the others'. Use
    ``broadcast_buffers=False`` and call this in all processes before evaluating or saving.
    ``normkit.SyncBatchNorm`` has nothing to merge: its processes agree at each step.

    Each process sends about 12 numbers per channel, whatever the number of processes.

    Args:
        model: the same model in every process.
        process_group: the processes that take part; None for all.

    Returns:
        A handle: ``print`` it for how far each layer moved; frozen layers are skipped and named.
        ``.undo()`` restores what this process had.

    Raises:
        TypeMismatchError: ``model`` is not a module, or is scripted.
        OptionError: ``process_group`` does not contain this process.
        StatisticsError: no layer keeps statistics that may be replaced; a process has other
            layers than this one, or NaN, or has failed; merged statistics exceed the type that a
            layer keeps them in. No process has changed anything then.

    Source: Chan, Golub & LeVeque 1979 (merging moments); Wu & Johnson 2021, arXiv 2105.07576,
    section 3.

    >>> model = nn.Sequential(nn.BatchNorm1d(2))
    >>> average_buffers(model)      # one process alone has nothing to merge
    0 changed by average_buffers: nothing to change
    """
    ranks = ranks_of(process_group)
    layers: list[NormLayer] = []
    skipped: list[Skipped] = []
    error: NormkitError | None = None
    try:
        layers, skipped = find_norm_layers(unwrap(model))
        _check_finite(layers, ranks)
    except NormkitError as raised:  # after the others know of it
        error = raised
    ranks.status([], fingerprint(layers), error)
    if error is not None:
        raise error
    if ranks.size == 1:
        return Handle("average_buffers", [], skipped, [])
    before = [one.stats(None) for one in layers]
    counters = [one.counter for one in layers]
    merged = _merge(layers, before, counters, ranks)
    changed: list[Changed] = []
    steps: list[Step] = []
    for one, old, counter, (mean, var, most) in zip(layers, before, counters, merged, strict=True):
        for buffer, value in zip(one.tensors, (mean, var), strict=True):
            check_range(value, buffer.dtype, one.name)  # the same in all processes
            steps.append(_write_step(buffer, value))
        if counter is not None:
            # One for each set of statistics, or one for all.
            each = most[..., 0]
            steps.append(_write_step(counter, each if counter.shape == each.shape else each.max()))
        cls = type(one.layer)
        far = ((mean - old[0]).abs() / old[1].clamp_min(1e-30).sqrt()).max()
        note = f"mean moved by up to {format_deviations(float(far))}"
        changed.append(Changed(one.name, cls, cls, note=note))
    run(steps)
    return Handle("average_buffers", changed, skipped, steps)


def _check_finite(layers: Sequence[NormLayer], ranks: Ranks) -> None:
    for one in layers if ranks.size > 1 else ():
        if not all(bool(t.isfinite().all()) for t in one.tensors):
            raise StatisticsError(
                message(
                    "finite running statistics",
                    f"NaN or infinity in {place_name(one.name)} of process {ranks.rank}",
                    "recompute them with normkit.recalibrate(model, batches)",
                )
            )


def _merge(
    layers: Sequence[NormLayer],
    before: Sequence[tuple[Tensor, Tensor]],
    counters: Sequence[Tensor | None],
    ranks: Ranks,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Merge mean, variance and count of batches over all ranks, each in the shape of its mean."""
    shape = [mean.shape for mean, _ in before]
    mean, var = (torch.cat([t.flatten() for t in column]) for column in zip(*before, strict=True))
    counts = [
        (torch.zeros((), device="cpu") if c is None else c.detach().cpu())
        .double()
        .unsqueeze(-1)
        .expand(s)
        for c, s in zip(counters, shape, strict=True)
    ]
    weights = [_weight(one.layer, count) for one, count in zip(layers, counts, strict=True)]
    weight, count = (torch.cat([t.flatten() for t in column]) for column in (weights, counts))
    largest, most = ranks.maximum(torch.cat([weight, count])).chunk(2)
    # All weigh the same where none has counted anything.
    weight = torch.where(largest > 0, weight / largest, 1.0)
    between = torch.cat(
        [
            torch.full((s.numel(),), float(not one.per_sample), device="cpu")
            for one, s in zip(layers, shape, strict=True)
        ]
    )
    merged = merge_shares(Moments(weight, mean, weight * var), ranks.sum, between)
    columns = (merged.mean, merged.m2 / merged.count, most)
    sizes = [s.numel() for s in shape]
    rows = zip(shape, *(column.split(sizes) for column in columns), strict=True)
    return [tuple(part.view(s) for part in parts) for s, *parts in rows]


def _weight(layer: nn.Module, count: Tensor) -> Tensor:
    """Weight of the batches in the averages; the rest is that of the initial values."""
    momentum = getattr(layer, "momentum", None)
    if momentum is None or getattr(layer, "average", None) == "cumulative":
        return count
    return 1 - (1 - float(momentum)) ** count


def _write_step(buffer: Tensor, value: Tensor) -> Step:
    write = partial(overwrite, buffer)
    return Step(partial(write, value), partial(write, buffer.detach().clone()))
