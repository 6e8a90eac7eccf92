"""What `save_memory` saves and costs: bytes kept after forward, peak, and time of a training step.

    python -m benchmarks.memory                                  # minutes on two idle cores
    python -m benchmarks.memory --networks resnet18 --sizes 8x64
    python -m benchmarks.memory --compiled                       # what torch.compile keeps

Sides: `torch.nn`, `nk.accelerate`, with `nk.save_memory`, and with `blocks=True`. Bytes are exact
counts of torch's allocations, without parameters. Each side is asserted to have the same gradients
to the last bit as without save_memory, and to leave no tensor alive after its step. Times: the
sides in turn in one process, medians. With ``--compiled``, bytes kept by a compiled forward pass,
as the partitioner of torch.compile decides with each ``activation_memory_budget``; nothing is
generated for it, so no times.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from benchmarks.networks import NETWORKS
from normkit.bench.limits import machine
from normkit.bench.memory import live_bytes, peak_bytes

FILE = Path(__file__).with_suffix(".json")
SIDES = ("torch.nn", "accelerate", "save_memory", "blocks=True")
MIB = 1 << 20
# The loss, and what a library may cache at a first call.
ALLOWED = 4096


def sides(make: Callable[[], nn.Module]) -> dict[str, nn.Module]:
    """Return the same network, in each of the four ways."""
    torch.manual_seed(0)
    models = {"torch.nn": make()}
    for name in SIDES[1:]:
        models[name] = copy.deepcopy(models["torch.nn"])
        nk.accelerate(models[name])
    nk.save_memory(models["save_memory"])
    nk.save_memory(models["blocks=True"], blocks=True)
    return models


def loss_of(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    torch.manual_seed(1)  # of dropout
    return F.cross_entropy(model(x), target)


def step(model: nn.Module, x: Tensor, target: Tensor) -> None:
    loss_of(model, x, target).backward()
    model.zero_grad()


def gradients(model: nn.Module, x: Tensor, target: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss_of(model, x, target), list(model.parameters())))


def measure(name: str, batch: int, size: int, seconds: float) -> dict[str, Any]:
    """Return bytes kept, peak and milliseconds of each side."""
    models = sides(NETWORKS[name])
    torch.manual_seed(2)
    x, target = torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))
    before = gradients(models["accelerate"], x, target)
    for side in SIDES[2:]:
        after = gradients(models[side], x, target)
        different = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert different == 0, f"{name}, {side}: {different} gradients differ"
    del before, after
    row: dict[str, Any] = {"network": name, "batch": batch, "size": size, "sides": {}}
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for side, model in models.items():
        step(model, x, target)
        kept = live_bytes(lambda m=model: loss_of(m, x, target))
        peak = peak_bytes(lambda m=model: step(m, x, target))
        alive = live_bytes(lambda m=model: step(m, x, target))
        assert alive <= ALLOWED, f"{name}, {side}: {alive} bytes stay alive after a step"
        row["sides"][side] = {"kept": kept, "peak": peak}
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times[SIDES[-1]]) < 3:
        for side, model in models.items():
            start = time.perf_counter()
            step(model, x, target)
            times[side].append(time.perf_counter() - start)
    for side in SIDES:
        row["sides"][side]["ms"] = 1000 * statistics.median(times[side])
    row["rounds"] = len(times[SIDES[0]])
    return row


def compiled(name: str, batch: int, size: int) -> dict[str, Any]:
    """Return bytes kept by eager torch.nn, and compiled with each budget."""
    import torch._functorch.config as config

    torch.manual_seed(0)
    model = NETWORKS[name]()
    x, target = torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))
    row: dict[str, Any] = {"network": name, "batch": batch, "size": size}
    step(model, x, target)
    row["eager"] = live_bytes(lambda: loss_of(model, x, target))
    for budget in (1.0, 0.5):
        torch._dynamo.reset()
        with config.patch(activation_memory_budget=budget):
            graph = torch.compile(model, backend="aot_eager_decomp_partition")
            step(graph, x, target)
            row[str(budget)] = live_bytes(lambda g=graph: loss_of(g, x, target))
    return row


def line(row: dict[str, Any]) -> str:
    """Return the row as Markdown: kept, peak in MiB, ms, each with its ratio to accelerate."""
    first = row["sides"]["accelerate"]
    cells = [f"{row['network']}, {row['batch']}×3×{row['size']}²"]
    for side in SIDES:
        s = row["sides"][side]
        cells.append(
            f"{s['kept'] / MIB:.0f} ({s['kept'] / first['kept'] - 1:+.0%}) / "
            f"{s['peak'] / MIB:.0f} ({s['peak'] / first['peak'] - 1:+.0%}) / "
            f"{s['ms']:.0f} ({s['ms'] / first['ms'] - 1:+.0%})"
        )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sizes", nargs="+", default=["8x64", "4x128"])
    parser.add_argument("--seconds", type=float, default=20, help="of timing, for each row")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    results["machine"] = machine()
    if not options.compiled:
        print("| kept MiB / peak MiB / ms | " + " | ".join(SIDES) + " |")
    for name in options.networks:
        for batch, size in (map(int, s.split("x")) for s in options.sizes):
            key = f"{name} {batch}x{size}"
            if options.compiled:
                row = compiled(name, batch, size)
                results.setdefault("compiled", {})[key] = row
                shares = {b: row[b] / row["eager"] for b in ("1.0", "0.5")}
                print(key, f"eager {row['eager'] / MIB:.0f} MiB", shares, flush=True)
            else:
                row = measure(name, batch, size, options.seconds)
                results.setdefault("eager", {})[key] = row
                print(line(row), flush=True)
            options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
