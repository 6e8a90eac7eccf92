"""Bytes and messages that several processes exchange in `recalibrate`, measured and computed.

    python benchmarks/statistics_scale.py                # 2, 4 and 8 processes over gloo
    python benchmarks/statistics_scale.py --processes 4    # 2 and 4
    python benchmarks/statistics_scale.py --table          # the arithmetic alone

Measured is what each process really writes, by the kernel's account of it (/proc/self/io, Linux):
gloo sends everything by write calls, and nothing else is written meanwhile. The formulas are those
of docs/scale.md. "Gathering" is what `recalibrate` did before: `all_gather_object` of a status
after every batch and of all units at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

import normkit as nk
from normkit.statistics.batches.tensors import tensors_in
from normkit.statistics.estimates.estimate import Estimate

WIDTH, DEPTH = 96, 4  # channels of a layer, and layers, of the network that is measured
BATCHES, BATCH = 40, 16  # of each process; enough samples for a single pass
MAX_ROUNDS, MAX_UNITS = 32, 128
STATUS = 8 * 7  # bytes of one meeting: four counts, failures, a fingerprint and its square
PER_CHANNEL, PER_LAYER = 8 * 7, 8 * 2  # bytes of one merge, in four sums
TINY_STATUS = 32  # bytes of a pickled status in the former way, about


class Traffic(NamedTuple):
    """What one process sends."""

    bytes: float
    messages: float


def reduced(channels: int, layers: int, meetings: int, merges: int, ranks: int) -> Traffic:
    """Traffic of a rank by ring all-reduce: each sends 2 (p − 1) / p of the payload.

    >>> reduced(26_560, 53, 3, 1, 8).bytes
    2604658.0
    """
    payload = meetings * STATUS + merges * (channels * PER_CHANNEL + layers * PER_LAYER)
    return Traffic(2 * (ranks - 1) / ranks * payload, 2 * (ranks - 1) * (meetings + 4 * merges))


def gathered(channels: int, layers: int, batches: int, ranks: int) -> Traffic:
    """Traffic of a rank in the former way: everybody's units to everybody, by ring all-gather.

    >>> round(gathered(26_560, 53, 200, 8).bytes / 1e6)
    298
    """
    # Neighbouring units were, and are, merged two by two when there are 128.
    size = 2 ** max(0, (batches // MAX_UNITS).bit_length())
    units = 8 * -(-batches // size) * (2 * channels + layers)
    status = (batches + 1) * (8 + TINY_STATUS)
    return Traffic((ranks - 1) * (units + 8 + status), (ranks - 1) * 2 * (batches + 2))


def meetings(batches: int) -> int:
    """Meetings of ranks that go over so many batches each, with no stop asked for.

    >>> [meetings(b) for b in (1, 32, 63, 200)]
    [2, 6, 7, 11]
    """
    return 1 + _met(batches)


def meetings_to(samples: int, batch: int, ranks: int) -> tuple[int, int]:
    """Meetings until all have seen ``samples`` together, and the batches of each by then.

    >>> meetings_to(10_000, 32, 8), meetings_to(10_000, 32, 1_000)
    ((6, 40), (1, 1))
    """
    batches = -(-samples // (batch * ranks))
    return 1 + _met(batches - 1), batches


def _met(batches: int) -> int:
    """Meetings within so many batches: after 1, 3, 7, 15, 31, then after each 32."""
    growing = min(batches + 1, MAX_ROUNDS).bit_length() - 1
    return growing + max(0, (batches + 1) // MAX_ROUNDS - 1)


def network() -> nn.Sequential:
    """Small layers, the same in every process."""
    torch.manual_seed(0)
    blocks = [(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()) for _ in range(DEPTH)]
    return nn.Sequential(*(layer for block in blocks for layer in block))


def worker(rank: int, processes: int, meeting: str, out: Path) -> None:
    """Measure in groups of 2, 4, … processes, and write what this one has sent."""
    torch.set_num_threads(1)
    store = dist.FileStore(meeting, processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    results: dict[str, dict[str, Any]] = {}
    size = 2
    while size <= processes:
        group = dist.new_group(list(range(size)))
        if rank < size:
            generator = torch.Generator().manual_seed(rank)
            batches = [torch.randn(BATCH, WIDTH, generator=generator) for _ in range(BATCHES)]
            dist.barrier(group)
            for name, run in (("reduced", recalibrate), ("gathered", gather)):
                results[f"{name} {size}"] = _sent(partial(run, batches, group), group)
        size *= 2
    dist.barrier()
    out.joinpath(f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def recalibrate(batches: list[torch.Tensor], group: Any) -> None:
    """Recalibrate on all batches of all processes."""
    nk.recalibrate(network(), batches, samples=None, process_group=group)


def gather(batches: list[torch.Tensor], group: Any) -> None:
    """Send what was sent before: a status after every batch, all units at the end."""
    ranks = dist.get_world_size(group)
    estimates = {f"{3 * i + 1}": Estimate(WIDTH) for i in range(DEPTH)}

    def everyone(mine: Any) -> None:
        dist.all_gather_object([None] * ranks, mine, group=group)

    for batch in batches:
        for estimate in estimates.values():
            estimate.add(nk.core.moments.Moments.of(tensors_in(batch)[0].double(), 0))
        everyone((len(batch), True, None))
    everyone((0, False, None))
    everyone({name: tuple(estimate.units()) for name, estimate in estimates.items()})


def _sent(run: Callable[[], None], group: Any) -> dict[str, float]:
    """Bytes and write calls of this process during ``run``, and the payload of its reductions."""
    payload = 0
    all_reduce = dist.all_reduce

    def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal payload
        payload += tensor.numel() * tensor.element_size()
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counting
    try:
        before = _io()
        run()
        after = _io()
    finally:
        dist.all_reduce = all_reduce
    dist.barrier(group)
    return {
        "payload": payload,
        "bytes": after["wchar"] - before["wchar"],
        "messages": after["syscw"] - before["syscw"],
    }


def _io() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def measure(processes: int) -> dict[str, dict[str, float]]:
    """Run the processes, and return the mean over ranks of what each sent."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--folder", folder, "--processes", str(processes)]
        running = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(processes)]
        if sum(process.wait() for process in running):
            raise SystemExit("a process failed")
        return means(Path(folder), processes)


def means(folder: Path, processes: int) -> dict[str, dict[str, float]]:
    """The mean over ranks of what each sent, from what `worker` wrote."""
    ranks = [json.loads((folder / f"{r}.json").read_text()) for r in range(processes)]
    found = {}
    for name in ranks[0]:
        rows = [rank[name] for rank in ranks if name in rank]
        found[name] = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    return found


NETWORKS = {"ResNet-50": (26_560, 53), "BN-LeNet": (226, 4)}
RANKS = (8, 1_000, 10_000)


def table() -> str:
    """The arithmetic of docs/scale.md, as Markdown."""
    rows = [
        "| network, run | ranks | gathering: a rank sends | all send | messages of a rank "
        "| all-reduce: a rank sends | all send | messages of a rank, ring | tree |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (channels, layers) in NETWORKS.items():
        for ranks in RANKS:
            met, batches = meetings_to(10_000, 32, ranks)
            rows.append(_row(f"{name}, 10,000 samples", channels, layers, ranks, met, batches))
        for ranks in RANKS:
            rows.append(
                _row(f"{name}, 200 batches each", channels, layers, ranks, meetings(200), 200)
            )
    return "\n".join(rows)


def _row(name: str, channels: int, layers: int, ranks: int, met: int, batches: int) -> str:
    old, new = gathered(channels, layers, batches, ranks), reduced(channels, layers, met, 1, ranks)
    return (
        f"| {name} | {ranks:,} | {_bytes(old.bytes)} | {_bytes(old.bytes * ranks)} "
        f"| {old.messages:,.0f} | {_bytes(new.bytes)} | {_bytes(new.bytes * ranks)} "
        f"| {new.messages:,.0f} | {3 * (met + 4)} |"
    )


def _bytes(count: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while count >= 999.5:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--table", action="store_true", help="print the arithmetic alone")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        meeting = str(options.folder / "rendezvous")
        worker(options.rank, options.processes, meeting, options.folder)
        return
    if not options.table:
        channels = WIDTH * DEPTH
        for name, sent in measure(options.processes).items():
            way, ranks = name.split()
            said = (
                reduced(channels, DEPTH, meetings(BATCHES), 1, int(ranks))
                if way == "reduced"
                else gathered(channels, DEPTH, BATCHES, int(ranks))
            )
            print(f"{name:>10}: {sent['bytes']:,.0f} bytes in {sent['messages']:,.0f} writes by a "
                  f"rank; payload {sent['payload']:,.0f}; formula {said.bytes:,.0f} bytes, "
                  f"{said.messages:,.0f} messages")  # fmt: skip
    print(table())


if __name__ == "__main__":
    main()
