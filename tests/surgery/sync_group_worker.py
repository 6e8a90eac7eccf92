"""One process of test_sync_groups.py: normalizes its share in a group, and writes the outputs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

import normkit as nk


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nk.BatchNorm2d(4, act="relu"))


def share(rank: int, samples: int) -> Tensor:
    g = torch.Generator().manual_seed(rank)
    return torch.randn(samples, 3, 4, 4, generator=g) * (rank + 1) + rank


def main(rank: int, sizes: list[int], rendezvous: str, out: str, scenario: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(sizes)
    )
    torch.set_num_threads(1)
    model, result = network(), {}
    for local, size in (("0", 3), ("2", 4), ("3", 2), ("0", 0)):
        os.environ["LOCAL_WORLD_SIZE"] = local
        before = [type(m) for m in model]
        try:
            nk.convert(model, "sync", group_size=size)
        except nk.OptionError as error:
            result[f"{size} of nodes of {local}"] = str(error)
        unchanged = [type(m) for m in model] == before
        assert unchanged or size == 4
        if size == 4:
            model = network()
    os.environ.pop("LOCAL_WORLD_SIZE")
    try:
        nk.convert(nn.Sequential(nn.BatchNorm2d(3)), "group", batches=[torch.randn(2, 3, 4, 4)])
    except nk.OptionError as error:
        result["solving"] = str(error)
    handle = nk.convert(model, "sync", group_size=int(scenario))
    result["text"] = repr(handle)
    result["y"] = model(share(rank, sizes[rank])).detach()
    result["state"] = model.state_dict()
    handle.undo()
    result["back"] = [type(m) for m in model] == [type(m) for m in network()]
    torch.save(result, Path(out) / f"{rank}.pt")
    dist.barrier()


if __name__ == "__main__":
    number, all_sizes, meeting, folder, what = sys.argv[1:]
    main(int(number), [int(n) for n in all_sizes.split(",")], meeting, folder, what)
