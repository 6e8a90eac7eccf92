"""One process of the tests in test_passes.py: recalibrates on its share, writes the result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import normkit as nk


def model() -> nn.Sequential:
    """The same in every process."""
    torch.manual_seed(11)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3), nk.BatchNorm2d(6, act="relu"),
        nn.Flatten(), nn.Linear(24, 5), nk.BatchNorm1d(5),
    )  # fmt: skip


def batches(count: int) -> list[torch.Tensor]:
    """All batches, the same in every process: far from zero, and drifting."""
    g = torch.Generator().manual_seed(5)
    steps = torch.linspace(-2, 2, max(count, 1))
    return [torch.randn(12, 3, 6, 6, generator=g) + 100 + step for step in steps[:count]]


def main(rank: int, sizes: list[int], rendezvous: str, out: Path, scenario: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(rendezvous, len(sizes))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(sizes))
    first = sum(sizes[:rank])
    mine: Any = batches(sum(sizes))[first : first + sizes[rank]]
    net: Any = model()
    options: dict[str, Any] = {"samples": None}
    if scenario == "layerwise":
        options["layerwise"] = True
    elif scenario == "tolerance":
        options["tolerance"] = 0.4
    elif scenario == "samples":
        options["samples"] = 70
    elif scenario == "alone":
        options["process_group"] = False
    elif scenario == "ddp":
        net = nn.parallel.DistributedDataParallel(net)
    elif scenario == "broken" and rank == 1:
        mine = broken(mine)
    result: dict[str, Any] = {}
    try:
        found = nk.recalibrate(net, mine, **options)
        result = {
            "layers": {name: tuple(one) for name, one in found.layers.items()},
            "told": (found.samples, found.batches, found.passes),
            "error": found.error,
        }
    except Exception as error:
        result["raised"] = f"{type(error).__name__}: {error}"
    result["state"] = {k: v.clone() for k, v in net.state_dict().items()}
    result["training"] = net.training
    torch.save(result, out / f"{rank}.pt")
    dist.barrier()


def broken(batches: list[torch.Tensor]) -> Any:
    """A loader that fails after its first batch."""
    yield batches[0]
    raise OSError("the disk is gone")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(int(arguments[0]), [int(n) for n in arguments[1].split(",")], arguments[2],
         Path(arguments[3]), arguments[4])  # fmt: skip
