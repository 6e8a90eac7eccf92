"""One process of the tests in test_sharded.py: models whose weights are shared out among ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor

import normkit as nk
from normkit.statistics import average_buffers

SIZES = ([3, 1], [4, 0], [0, 4], [2, 2])
PACKAGES = {"torch": nn, "ours": nk}
# Each division of the batches with and without layerwise, and with few samples: once, by one of
# the packages in turn, as only the layers' classes tell these apart.
WAYS = {
    name: [(sizes, (i + j) % 2 == 1) for i, sizes in enumerate(SIZES)]
    for j, name in enumerate(PACKAGES)
}
FEW = {name: SIZES[j::2] for j, name in enumerate(PACKAGES)}


def model(package: Any, kind: str = "plain") -> nn.Module:
    """The same in every process, before it is sharded; in float64, to compare to many digits."""
    torch.manual_seed(11)
    inner = nn.Sequential(nn.Conv2d(4, 4, 3), package.BatchNorm2d(4))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), package.BatchNorm2d(4), nn.ReLU(), inner).double()
    if kind == "fsdp1":
        options: Any = {"device_id": torch.device("cpu"), "use_orig_params": True}
        net[3] = FullyShardedDataParallel(inner, **options)
        return FullyShardedDataParallel(net, **options)
    if kind in ("fsdp2", "inner"):
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(inner, mesh=mesh)
        return fully_shard(net, mesh=mesh) if kind == "fsdp2" else net
    return nn.parallel.DistributedDataParallel(net) if kind == "ddp" else net


def batches(count: int = 4, size: int = 12) -> list[Tensor]:
    """All batches, the same in every process."""
    g = torch.Generator().manual_seed(5)
    return [
        torch.randn(size, 3, 7, 7, generator=g, dtype=torch.float64) + 3 + i for i in range(count)
    ]


def share(sizes: list[int], rank: int, size: int = 12) -> list[Tensor]:
    first = sum(sizes[:rank])
    return batches(sum(sizes), size)[first : first + sizes[rank]]


def measured(found: Any) -> dict[str, Any]:
    layers = {k.replace("_fsdp_wrapped_module.", ""): tuple(v) for k, v in found.layers.items()}
    return {"layers": layers, "samples": found.samples, "batches": found.batches}


def refused(call: Any) -> str:
    """Return what is raised."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def failing(mine: list[Tensor]) -> Iterator[Tensor]:
    yield mine[0]
    raise OSError("the disk is gone")


def trained(net: nn.Module, rank: int, look: Any = None) -> list[Tensor]:
    """Weights after two steps, the second of which begins with ``look`` at its gradients."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for number, x in enumerate(batches(4)[rank::2]):
        net(x).square().mean().backward()
        if look is not None and number == 0:
            look(net)
        optimizer.step()
        optimizer.zero_grad()
    wrapped = isinstance(net, FullyShardedDataParallel)
    with FullyShardedDataParallel.summon_full_params(net) if wrapped else torch.no_grad():
        tensors = [*net.parameters(), *net.buffers()]
        return [getattr(t, "full_tensor", lambda t=t: t)().detach().clone() for t in tensors]


def main(rank: int, rendezvous: str, out: Path, kind: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(rendezvous, 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))  # fmt: skip
    result: dict[str, Any] = {}
    for name, package in PACKAGES.items():
        for sizes, layerwise in WAYS[name]:
            net = model(package, kind).train()
            found = nk.recalibrate(
                net, share(sizes, rank), samples=None, layerwise=layerwise, progress=False
            )
            result[f"{name} {sizes} {layerwise}"] = measured(found)
        for sizes in FEW[name]:
            # So small that all layers but the first need another pass.
            net = model(package, kind).train()
            found = nk.recalibrate(net, share(sizes, rank, 5), samples=None, progress=False)
            result[f"{name} {sizes} few"] = measured(found)
        net = model(package, kind).train()
        mine = share([3, 1], rank)
        empty = [] if kind == "ddp" else [mine[0][:0]]
        found = nk.recalibrate(net, [*empty, *mine], samples=20, progress=False)
        result[f"{name} samples"] = measured(found)
        result[f"{name} training"] = [
            trained(model(package, kind), rank, look)
            for look in (None, lambda net, mine=mine: nk.recalibrate(net, mine).undo())
        ]
        single = [mine[0], torch.zeros(1, 3, 5, 5, dtype=torch.float64)] if rank else mine
        for what, those, samples in (
            ("consistency", mine, None), ("of samples", mine, 1 + 20 * (1 - rank)),
            ("of single values", single, None),
        ):  # fmt: skip
            compared = nk.consistency(net, those, samples=samples, progress=False)
            result[f"{name} {what}"] = compared.samples, compared.layers
        mesh = init_device_mesh("cpu", (2,))
        tensors = distribute_module(nn.Sequential(nn.Linear(3, 3), package.BatchNorm1d(3)), mesh)
        some = [distribute_tensor(torch.ones(2, 3), mesh, [Replicate()])]
        result[f"{name} distributed"] = [
            refused(lambda run=run, tensors=tensors, some=some: run(tensors, some))
            for run in (nk.recalibrate, nk.consistency, lambda net, _: average_buffers(net))
        ]
        kept = [b.clone() for b in net.buffers()]
        result[f"{name} failing"] = refused(
            lambda net=net, mine=mine: nk.recalibrate(
                net, failing(mine) if rank else mine, progress=False
            )
        )
        wrong: Any = ["no tensor"] if rank else mine
        result[f"{name} wrong"] = refused(
            lambda net=net, wrong=wrong: nk.recalibrate(net, wrong, progress=False)
        )
        result[f"{name} empty"] = refused(lambda net=net: nk.recalibrate(net, [], progress=False))
        result[f"{name} alone"] = refused(
            lambda net=net, mine=mine: nk.recalibrate(
                net, mine, process_group=False, progress=False
            ).undo()
        )
        result[f"{name} unchanged"] = all(map(torch.equal, kept, net.buffers())) and net.training
    torch.save(result, out / f"{rank}.pt")
    dist.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[3], Path(sys.argv[4]), sys.argv[5])
