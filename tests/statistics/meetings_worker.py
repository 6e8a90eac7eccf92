"""One process of the tests in test_meetings.py: what only one process has, or only one refuses."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import normkit as nk


def model() -> nn.Sequential:
    """The same in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))


def loss(output: Any, batch: Any) -> Any:
    if dist.get_rank() == 1:
        raise OSError("the labels are gone")
    return output.sum()


def main(rank: int, sizes: list[int], rendezvous: str, out: Path, scenario: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(rendezvous, len(sizes))
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=len(sizes), timeout=timedelta(seconds=30)
    )
    net = model()
    data: Any = (torch.randn(sizes[rank] * 8, 4) * 3 + 1).split(8)
    result: dict[str, Any] = {}
    try:
        if scenario == "start":
            # As they are without broadcasts of buffers.
            net[2].running_mean.fill_(float(100 * rank))
            net[2].running_var.fill_(1.0 if rank else 1e-8)
            data = (torch.randn(sizes[rank], 4) * 3 + 1).split(1) if sizes[rank] else []
            for _ in range(2):
                one = nk.recalibrate(net, data, progress=False)
                result.setdefault("passes", []).append((one.passes, one.error_passes))
        elif scenario == "loss":
            nk.consistency(fully_shard(net), data, loss=loss, progress=False)
        elif scenario.startswith("frozen"):
            if rank == 1:
                nk.freeze(net)
            net = fully_shard(net) if scenario.endswith("sharded") else net
            function = nk.consistency if "consistency" in scenario else nk.recalibrate
            function(net, data, progress=False)
        elif scenario == "batches":
            nk.recalibrate(net, data if rank == 0 else 3, progress=False)
        elif scenario == "iterator":
            nk.recalibrate(net, data if rank == 0 else iter(data), layerwise=True, progress=False)
    except (nk.NormkitError, OSError) as error:
        result["raised"] = f"{type(error).__name__}: {error}"
    result["state"] = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    torch.save(result, out / f"{rank}.pt")
    dist.barrier()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(int(arguments[0]), [int(n) for n in arguments[1].split(",")], arguments[2],
         Path(arguments[3]), arguments[4])  # fmt: skip
