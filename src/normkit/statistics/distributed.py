"""The processes that share a measurement, or the one that makes it alone."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.core.moments import merge_rows
from normkit.errors import NormkitError, OptionError, StatisticsError, explain
from normkit.handle import Changed, Handle, Left, Step, run
from normkit.statistics.stats_layers import Place, find, unwrapped

__all__ = ["Peers", "average_buffers", "peers"]

T = TypeVar("T")


class Peers(Protocol):
    """Those who take part."""

    rank: int

    def gather(self, mine: T) -> list[T]:
        """What every process gives, by rank, at every process."""


class _Alone:
    rank = 0

    def gather(self, mine: T) -> list[T]:
        return [mine]


class _Group:
    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank = dist.get_rank(group)

    def gather(self, mine: T) -> list[T]:
        found: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(found, mine, group=self._group)
        return found


def peers(process_group: Any) -> Peers:
    """The processes of a group: None for all there are, False for this one alone.

    Raises:
        OptionError: this process is not in the group, or there is no process group at all.
    """
    ready = dist.is_available() and dist.is_initialized()
    if process_group is False or (process_group is None and not ready):
        return _Alone()
    if not ready or (process_group is not None and dist.get_rank(process_group) < 0):
        raise OptionError(
            explain(
                "process_group names processes that this one belongs to",
                "a group without it" if ready else "one, and torch.distributed is not initialized",
                "call it in the group's processes, or leave process_group out",
            )
        )
    group = dist.group.WORLD if process_group is None else process_group
    return _Group(group) if dist.get_world_size(group) > 1 else _Alone()


def refuse_failure(notes: list[str | None], rank: int) -> None:
    """Raise where another process has failed; ``notes`` holds what each says, None if all is well.

    Raises:
        StatisticsError: as said. The model is as it was, here as there.
    """
    failed = {i: note for i, note in enumerate(notes) if note is not None and i != rank}
    if failed:
        who, what = next(iter(failed.items()))
        raise StatisticsError(
            explain(
                "all processes must come through together",
                f"a failure in process {who}: {what}",
                "see that process's own error; no model was changed",
            )
        )


class _Remembered(NamedTuple):
    """What one layer of one process brings: float64, on the CPU, C or (D, C) elements."""

    name: str
    mean: Tensor
    var: Tensor
    tracked: Tensor | None
    weight: Tensor | None


def average_buffers(model: nn.Module, process_group: Any = None) -> Handle:
    r"""Merge the running statistics that the processes of a group have gathered apart; in place.

    .. math::
        \mu = \frac{\sum_p w_p \mu_p}{\sum_p w_p},\qquad
        \sigma^2 = \frac{\sum_p w_p \left(\sigma_p^2 + (\mu_p - \mu)^2\right)}{\sum_p w_p}

    The variance within the processes and that between them: an average of the variances alone
    is too small wherever the processes see different data. All processes end with the same bits.
    A process weighs as much as batches weigh in its averages, by its ``num_batches_tracked``:
    one that has seen none counts for nothing. Where a layer does not count, as instance
    normalization, which also averages over samples and so has no variance between, all weigh the
    same. The counter becomes that of the process which has seen most.

    ``DistributedDataParallel`` does something else. By default (``broadcast_buffers=True``) each
    forward pass overwrites every process's statistics by those of the first, so the model
    remembers the first one's share of the data and what the others saw is lost. Use
    ``broadcast_buffers=False`` and call this in all processes before evaluating or saving.
    ``normkit.SyncBatchNorm`` has nothing to merge: its processes agree at each step.

    Args:
        model: the same model in every process.
        process_group: the processes that take part; None for all.

    Returns:
        A handle: ``print`` it for how far each layer moved; frozen layers are left and named.
        ``.undo()`` puts back what this process had.

    Raises:
        TypeMismatchError: ``model`` is no module, or scripted.
        OptionError: ``process_group`` does not hold this process.
        StatisticsError: no layer remembers statistics and is free to move; a process has others
            than this one, or NaN, or has failed. No process has changed anything then.

    Source: Chan, Golub & LeVeque 1979 (merging moments); Wu & Johnson 2021, arXiv 2105.07576,
    section 3.

    >>> model = nn.Sequential(nn.BatchNorm1d(2))
    >>> average_buffers(model)      # a process alone has nothing to merge
    average_buffers: 0 changed, 0 skipped: nothing to change
    """
    others = peers(process_group)
    places: list[Place] = []
    left: list[Left] = []
    mine: list[_Remembered] = []
    error: NormkitError | None = None
    try:
        places, left = find(unwrapped(model))
        mine = [_remembered(place) for place in places]
    except NormkitError as found:  # the others wait for this process
        error = found
    gathered = others.gather((None if error is None else str(error), mine))
    if error is not None:
        raise error
    refuse_failure([note for note, _ in gathered], others.rank)
    shares = [share for _, share in gathered]
    if len(shares) == 1:
        return Handle("average_buffers", [], left, [])
    _check_alike(shares, others.rank)
    changed: list[Changed] = []
    steps: list[Step] = []
    for i, place in enumerate(places):
        parts = [share[i] for share in shares]
        mean, var = _merged(parts, place.memory.per)
        for buffer, value in zip(place.tensors, (mean, var), strict=True):
            steps.append(_writing(buffer, value))
        counter = getattr(place.layer, "num_batches_tracked", None)
        counters = [part.tracked for part in parts]
        if isinstance(counter, Tensor) and all(c is not None for c in counters):
            most = torch.stack([c for c in counters if c is not None]).amax(0)
            steps.append(_writing(counter, most))
        cls = type(place.layer)
        moved = ((mean - mine[i].mean).abs() / mine[i].var.clamp_min(1e-30).sqrt()).max()
        note = f"mean moved by up to {float(moved):.2g} deviations"
        changed.append(Changed(place.name, cls, cls, note=note))
    run(steps)
    return Handle("average_buffers", changed, left, steps)


def _remembered(place: Place) -> _Remembered:
    mean, var = (t.detach().double().cpu() for t in place.tensors)
    tracked = getattr(place.layer, "num_batches_tracked", None)
    if not isinstance(tracked, Tensor) or isinstance(place.layer, _InstanceNorm):
        return _Remembered(place.name, mean, var, None, None)
    tracked = tracked.cpu()
    return _Remembered(place.name, mean, var, tracked, _weight(place.layer, tracked))


def _weight(layer: nn.Module, tracked: Tensor) -> Tensor:
    """What batches weigh in the averages; the rest is what the layer started with."""
    momentum = getattr(layer, "momentum", None)
    if momentum is None or getattr(layer, "average", None) == "cumulative":
        return tracked.double()
    return 1 - (1 - float(momentum)) ** tracked.double()


def _merged(parts: list[_Remembered], per: str) -> tuple[Tensor, Tensor]:
    means = torch.stack([part.mean for part in parts])
    variances = torch.stack([part.var for part in parts])
    weights = torch.ones_like(means)
    known = [part.weight for part in parts if part.weight is not None]
    if len(known) == len(parts):
        # One weight for each bank of (D, C), or one for all of (C,).
        found = torch.stack([w.unsqueeze(-1) for w in known]).expand_as(means)
        weights = torch.where(found.sum(0) > 0, found, weights)
        weights = weights / weights.amax(0)  # counts are 1 or more where they are merged
    total = merge_rows(weights, means, weights * variances)
    if per == "sample":
        return total.mean, (weights * variances).sum(0) / weights.sum(0)
    return total.mean, total.m2 / total.count


def _check_alike(shares: list[list[_Remembered]], rank: int) -> None:
    own = [(part.name, part.mean.shape) for part in shares[rank]]
    for other, share in enumerate(shares):
        theirs = [(part.name, part.mean.shape) for part in share]
        if theirs != own:
            raise StatisticsError(
                explain(
                    "all processes average the same layers",
                    f"{len(own)} in process {rank} and {len(theirs)} in process {other}, or of "
                    "other names and sizes",
                    "call it with the same model, frozen alike, everywhere",
                )
            )
        broken = [p.name for p in share if not bool((p.mean + p.var).isfinite().all())]
        if broken:
            raise StatisticsError(
                explain(
                    "statistics to be averaged are finite",
                    f"NaN or infinity in {broken[0] or 'the model'} of process {other}",
                    "compute them anew with normkit.recalibrate(model, batches)",
                )
            )


def _writing(buffer: Tensor, value: Tensor) -> Step:
    @torch.no_grad()
    def write(values: Tensor) -> None:
        buffer.copy_(values)

    return Step(partial(write, value), partial(write, buffer.detach().clone()))
