"""Overhead of small layers on the torch that is installed: a row for docs/torch-versions.md.

On so few values nearly all of the time is spent around the kernel. Ours over ``torch.nn``'s, in one
process in turn, on one thread: evaluation without gradients, and a training step's forward and
backward::

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

CALLS = 5  # of one round: few enough to fit between two interruptions by other programs
CASES: tuple[tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]], ...] = (
    (lambda: nk.BatchNorm2d(3), lambda: nn.BatchNorm2d(3), (4, 3, 8, 8)),
    (lambda: nk.LayerNorm(512), lambda: nn.LayerNorm(512), (64, 512)),
)


def forward(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    layer.eval()

    def run() -> None:
        with torch.no_grad():
            for _ in range(CALLS):
                layer(x)

    return run


def step(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    x = x.clone().requires_grad_()
    leaves, dy = [x, *layer.parameters()], torch.randn_like(x)

    def run() -> None:
        for _ in range(CALLS):
            torch.autograd.grad(layer(x), leaves, dy)

    return run


def main() -> None:
    torch.set_num_threads(1)
    cells = [str(torch.__version__), platform.python_version(), cpu.describe()]
    for ours, theirs, shape in CASES:
        x = torch.randn(shape)
        for make in (forward, step):
            sides = {"ours": make(ours(), x), "torch.nn": make(theirs(), x)}
            times = time_interleaved(sides, seconds=4, min_rounds=200, precision=0.005)
            us = {side: times.of(side) / CALLS * 1e6 for side in sides}
            ratio = times.ratio("ours", "torch.nn")[0]
            cells.append(f"{us['ours']:.1f} / {us['torch.nn']:.1f} µs = {ratio:.2f}")
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
