"""Ranks that share a measurement, and running statistics merged across them."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normkit.core.moments import Moments
from normkit.errors import NormkitError, OptionError, StatisticsError, message
from normkit.handle import Changed, Handle, Skipped, Step, run
from normkit.statistics.estimates.estimate import merge_shares
from normkit.statistics.layers.find import NormLayer, find_norm_layers, unwrap
from normkit.statistics.layers.preserve import overwrite

__all__ = ["Ranks", "average_buffers", "fingerprint", "ranks_of"]


class Ranks:
    """The processes of a group, or this one alone, for which every method is trivial.

    All ranks call the same methods in the same order. Reductions give all of them the same bits:
    gloo and NCCL add each element up in one place.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)

    def sum(self, values: Tensor) -> Tensor:
        """Add up ``values`` over all ranks."""
        return self._reduce(values, dist.ReduceOp.SUM) if self.size > 1 else values

    def maximum(self, values: Tensor) -> Tensor:
        """Take the elementwise maximum of ``values`` over all ranks."""
        return self._reduce(values, dist.ReduceOp.MAX) if self.size > 1 else values

    def _reduce(self, values: Tensor, op: Any) -> Tensor:
        # NCCL takes tensors on a GPU only, and others those of their own devices.
        devices = [pair.split(":")[0] for pair in dist.get_backend_config(self._group).split(",")]
        sent = values.clone() if "cpu" in devices else values.to(devices[0])
        dist.all_reduce(sent, op, group=self._group)
        return sent.cpu()

    def first(self, value: Any) -> tuple[int, Any]:
        """Return the value of the first rank whose value is not None, and its rank.

        All ranks call it; without such a rank the result is their number, and None.
        """
        rank = torch.tensor([self.size if value is None else self.rank], device="cpu")
        first = int(self._reduce(rank, dist.ReduceOp.MIN)) if self.size > 1 else int(rank)
        if self.size == 1 or first == self.size:
            return first, value
        values = [value]
        source = dist.get_global_rank(self._group, first)
        dist.broadcast_object_list(values, source, self._group)
        return first, values[0]

    def status(
        self, counts: Sequence[int], layers: int, error: BaseException | None = None
    ) -> list[int]:
        """Add up ``counts`` over all ranks, which also shows whether all are well.

        Args:
            counts: numbers of this rank.
            layers: a number that is the same at ranks that measure the same layers.
            error: this rank's failure; the caller raises it afterwards.

        Raises:
            StatisticsError: another rank has failed, or measures other layers.
        """
        if self.size == 1:
            return list(counts)
        # The mean of the squares is the square of the mean where all are equal, and only there.
        row = [*counts, int(error is not None), layers, layers**2]
        *totals, failed, first, second = self.sum(torch.tensor(row, device="cpu")).tolist()
        if failed:
            self._raise_failure(error)
        elif first**2 != second * self.size:
            raise StatisticsError(
                message(
                    "the same layers in every process",
                    f"layers of other names and sizes than process {self.rank} has",
                    "pass the same model, frozen alike, in every process",
                )
            )
        return list(totals)

    @contextlib.contextmanager
    def announcing(self, counts: int) -> Iterator[None]:
        """Let the other ranks know of an error within, at their next :meth:`status`.

        ``counts`` is how many that one adds up.
        """
        try:
            yield
        except Exception as error:
            self.status([0] * counts, 0, error)
            raise

    def _raise_failure(self, error: BaseException | None) -> None:
        first, note = self.first(None if error is None else f"{type(error).__name__}: {error}")
        if error is None:
            raise StatisticsError(
                message(
                    "every process to succeed",
                    f"a failure in process {first}: {note}",
                    "see that process's own error; no model was changed",
                )
            )


def ranks_of(process_group: Any) -> Ranks:
    """Return the ranks of a group: None for all there are, False for this process alone.

    Raises:
        OptionError: this process is not in the group, or no process group is initialized.
    """
    ready = dist.is_available() and dist.is_initialized()
    if process_group is False or (process_group is None and not ready):
        return Ranks()
    if not ready or (process_group is not None and dist.get_rank(process_group) < 0):
        raise OptionError(
            message(
                "a process_group that this process belongs to",
                "a group without it" if ready else "one, but torch.distributed is not initialized",
                "call it in the group's processes, or leave process_group out",
            )
        )
    return Ranks(dist.group.WORLD if process_group is None else process_group)


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
            layers than this one, or NaN, or has failed. No process has changed anything then.

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
        steps += [_write_step(b, v) for b, v in zip(one.tensors, (mean, var), strict=True)]
        if counter is not None:
            # One for each set of statistics, or one for all.
            each = most[..., 0]
            steps.append(_write_step(counter, each if counter.shape == each.shape else each.max()))
        cls = type(one.layer)
        far = ((mean - old[0]).abs() / old[1].clamp_min(1e-30).sqrt()).max()
        note = f"mean moved by up to {float(far):.2g} deviations"
        changed.append(Changed(one.name, cls, cls, note=note))
    run(steps)
    return Handle("average_buffers", changed, skipped, steps)


def fingerprint(layers: Sequence[NormLayer]) -> int:
    """Return a number that almost surely differs between models whose layers differ."""
    text = ";".join(f"{one.name} {one.spec.per} {tuple(one.tensors[0].shape)}" for one in layers)
    return zlib.crc32(text.encode()) >> 8  # 24 bits: sums of squares fit 64 bits at 10⁴ ranks


def _check_finite(layers: Sequence[NormLayer], ranks: Ranks) -> None:
    for one in layers if ranks.size > 1 else ():
        if not all(bool(t.isfinite().all()) for t in one.tensors):
            raise StatisticsError(
                message(
                    "finite running statistics",
                    f"NaN or infinity in {one.name or 'the model'} of process {ranks.rank}",
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
