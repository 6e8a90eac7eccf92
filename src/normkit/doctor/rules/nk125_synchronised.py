"""Statistics are synchronised without need, or not at all.

What it checks
    Whether there are SyncBatchNorm layers without several processes, or several processes and
    batch normalization that is not synchronised.

Why it is bad
    Without processes SyncBatchNorm is BatchNorm and only slower to set up. With them, each process
    normalizes with its own share of the batch, and DistributedDataParallel keeps the running
    statistics of the first process alone: with small shares both are noisy.

Example
    DistributedDataParallel(model) with two images a process

Use instead
    nn.SyncBatchNorm.convert_sync_batchnorm(model) for small shares; nk.recalibrate(model, train) at
    the end, which merges over all processes.

When it is right
    Shares of 32 and more need no synchronisation.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import distributed, nn

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import count


def _processes() -> int:
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose statistics are of another scope than is likely meant."""
    processes = _processes()
    batch = [one for one in exam.norms if one.kind == "batch" and not one.frozen]
    synchronised = [one for one in batch if isinstance(one.layer, nn.SyncBatchNorm)]
    apart = [one for one in batch if one not in synchronised]
    if processes == 1 and synchronised:
        yield Finding(
            "note",
            tuple(one.name for one in synchronised),
            f"{count(synchronised)} of SyncBatchNorm in a single process: there is nothing to "
            "synchronise.",
            "nothing where the same model also trains in several processes",
            float(len(synchronised)),
        )
    if processes > 1 and apart:
        yield Finding(
            "note",
            tuple(one.name for one in apart),
            f"In {processes} processes, batch normalization uses the share of its own process "
            f"alone, in {count(apart)}.",
            "nn.SyncBatchNorm.convert_sync_batchnorm(model) if shares are below 32 samples",
            float(processes),
        )
