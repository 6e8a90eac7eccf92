"""Overhead of small layers on the torch that is installed: a row for docs/torch-versions.md.

Forward and backward of a normalization with ReLU on a few values, where nearly all of the time is
spent around the kernel, ours against ``torch.nn``'s in turn, on one thread::

    build/torch-2.9.1-python3/bin/python benchmarks/small_layers.py
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.bench.stopwatch import time_interleaved
from normkit.kernels import cpu

CALLS = 50  # of one round, so that reading the clock does not count
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm2d": (
        lambda: nk.BatchNorm2d(8, act="relu"),
        lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        (2, 8, 4, 4),
    ),
    "LayerNorm": (
        lambda: nk.LayerNorm(16, act="relu"),
        lambda: nn.Sequential(nn.LayerNorm(16), nn.ReLU(inplace=True)),
        (8, 16),
    ),
}


def steps(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], None]:
    leaves = [x, *layer.parameters()]

    def run() -> None:
        for _ in range(CALLS):
            torch.autograd.grad(layer(x), leaves, dy)

    return run


def main() -> None:
    torch.set_num_threads(1)
    cells = [str(torch.__version__), platform.python_version()]
    cells.append(cpu.fused.in_use() if cpu.fused is not None else "portable")
    for ours, theirs, shape in CASES.values():
        x, dy = torch.randn(2, *shape).unbind()
        x.requires_grad_()
        sides = {"ours": steps(ours(), x, dy), "torch.nn": steps(theirs(), x, dy)}
        times = time_interleaved(sides, seconds=4, min_rounds=50)
        us = {side: times.of(side) / CALLS * 1e6 for side in sides}
        cells.append(f"{us['ours']:.1f} / {us['torch.nn']:.1f} µs")
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
