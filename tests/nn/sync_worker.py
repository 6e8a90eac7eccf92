"""One process of the tests in test_sync.py: trains on its share, writes down what it ends with."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import normkit as nk


def data(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole batch, the same in every process: far from zero, and drifting with the sample."""
    g = torch.Generator().manual_seed(5)
    x = torch.randn(n, 3, 4, 4, generator=g, dtype=torch.float64)
    x = x + 100 + torch.arange(n).view(n, 1, 1, 1)
    return x, torch.randn(n, 2, generator=g, dtype=torch.float64)


def model(layer: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        layer(4, act="silu", average="debiased"),
        nn.Flatten(),
        nn.Linear(16, 5),
        layer(5),
        nn.Linear(5, 2),
    ).double()


def train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, world: int, total: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        # The sum over the whole batch over its size; DDP divides gradients by the world's size.
        loss = (net(x) - y).square().sum() * world / total
        loss.backward()
        optimizer.step()


def main(rank: int, sizes: list[int], rendezvous: str, out: str, scenario: str) -> None:
    world = len(sizes)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    total = sum(sizes)
    x, y = data(total)
    start = sum(sizes[:rank])
    mine = slice(start, start + sizes[rank])
    result: dict[str, object] = {}
    if scenario == "train":
        net = DistributedDataParallel(model(nk.SyncBatchNorm))
        train(net, x[mine], y[mine], world, total)
        result["state"] = net.module.state_dict()
        with torch.no_grad():
            net.eval()
            result["y"] = net(x)
    elif scenario == "single value":
        layer = nk.SyncBatchNorm(3)
        try:
            layer(torch.ones(sizes[rank], 3))
            result["mean"] = layer.running_mean
        except nk.ShapeError as error:
            result["error"] = str(error)
    elif scenario == "refused":
        layer = nk.SyncBatchNorm(3).double()
        z = x[mine].requires_grad_()
        try:
            torch.autograd.grad(layer(z).square().sum(), z, create_graph=True)
        except nk.StatisticsError as error:
            result["error"] = str(error)
        # In one process alone the values are beyond what a buffer holds; all must hear of it.
        layer = nk.SyncBatchNorm(3)
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        try:
            layer(x[mine].float() * 1e20 ** (rank == 0))
        except nk.NonFiniteError as error:
            result["beyond"] = str(error)
        after = layer.state_dict()
        result["kept"] = all(torch.equal(before[name], after[name]) for name in before)
    elif scenario == "groups":
        # Each process by itself: the layer then equals plain batch normalization.
        groups = [dist.new_group([r]) for r in range(world)]
        layer = nk.SyncBatchNorm(3, process_group=groups[rank]).double()
        plain = nk.BatchNorm2d(3).double()
        result["equal"] = bool(torch.equal(layer(x[mine]), plain(x[mine])))
    torch.save(result, Path(out) / f"{rank}.pt")
    dist.barrier()


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        [int(s) for s in sys.argv[2].split(",")],
        sys.argv[3],
        sys.argv[4],
        sys.argv[5],
    )
