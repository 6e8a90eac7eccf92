"""One process of the tests in test_distributed.py: trains on its share and writes its results."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import normkit as nk
from normkit.nn import DomainBatchNorm2d
from normkit.statistics import average_buffers, batch_statistics, use_domain
from normkit.surgery import freeze


def batches(rank: int, count: int) -> list[Tensor]:
    """Far from zero, and of another mean and spread in each process."""
    g = torch.Generator().manual_seed(rank)
    return [
        torch.randn(6, 3, 4, 4, generator=g) * (1 + rank) + 100 + 5 * rank for _ in range(count)
    ]


def model() -> nn.ModuleDict:
    return nn.ModuleDict({
        "exponential": nn.BatchNorm2d(3), "cumulative": nk.BatchNorm2d(3, average="cumulative"),
        "debiased": nk.BatchNorm2d(3, average="debiased"), "domains": DomainBatchNorm2d(3, 2),
        "instance": nn.InstanceNorm2d(3, track_running_stats=True),
        "frozen": nn.BatchNorm2d(3),
    })  # fmt: skip


def seen(net: nn.ModuleDict, rank: int, count: int) -> None:
    for x in batches(rank, count):
        with use_domain(net, rank % 2):
            for layer in net.values():
                layer(x)


def main(rank: int, counts: list[int], rendezvous: str, out: str, scenario: str) -> None:
    world = len(counts)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    result: dict[str, object] = {}
    net = model()
    if scenario in ("average", "pair"):
        seen(net, rank, counts[rank])
        freeze(net["frozen"])
        group = dist.new_group([0, 1]) if scenario == "pair" else None
        result["before"] = copy.deepcopy(net.state_dict())
        if group is None or rank < 2:
            handle = average_buffers(net, group)
            result["text"] = repr(handle)
            result["after"] = copy.deepcopy(net.state_dict())
            handle.undo()
        result["undone"] = net.state_dict()
    elif scenario == "broadcast":
        layer = nn.Sequential(nn.BatchNorm2d(3))
        for broadcast in (True, False):
            ddp = DistributedDataParallel(copy.deepcopy(layer), broadcast_buffers=broadcast)
            for x in batches(rank, 30):
                ddp(x)
            average_buffers(ddp)
            result[f"broadcast {broadcast}"] = ddp.module[0].state_dict()
    elif scenario == "failures":
        errors = []
        if rank == 1:
            net["cumulative"].running_var[0] = float("nan")
        other = nn.ModuleDict({"one": nn.BatchNorm2d(3 + rank)})
        nothing = nn.ReLU() if rank == 1 else nn.BatchNorm2d(3)
        kept = copy.deepcopy(net.state_dict())
        apart = nn.BatchNorm2d(3).half()  # the variance between processes exceeds float16
        apart.get_buffer("running_mean").fill_(6e4 * (1 - 2 * rank))
        for tried in (net, other, nothing, apart):
            try:
                average_buffers(tried)
            except nk.StatisticsError as error:
                errors.append(str(error))
        result["apart"] = apart.state_dict()
        result["errors"], result["before"], result["undone"] = errors, kept, net.state_dict()
    elif scenario == "scope":
        # Batch statistics of a synchronised layer are those of all processes, in evaluation too.
        layer = nk.SyncBatchNorm(3).double()
        x = batches(rank, 1)[0].double()
        expected = copy.deepcopy(layer)(x)
        with batch_statistics(layer.eval()):
            result["equal"] = bool(torch.equal(layer(x), expected))
        result["alone"] = bool(torch.equal(nk.BatchNorm2d(3).double()(x), expected))
        result["moved"] = bool(layer.running_mean.any())
    torch.save(result, Path(out) / f"{rank}.pt")
    dist.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(c) for c in sys.argv[2].split(",")], *sys.argv[3:6])
