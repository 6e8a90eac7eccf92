"""Time Caffe's two layers, batch normalization without γ and β and then Scale, and the merged one.

In one process in turn, on one thread: a training step's forward and backward, and an evaluation
without gradients. Processor time, which other programs change less than time on the clock. Prints
rows for docs/articles/bayes.md::

    python benchmarks/split_scale.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.bench.stopwatch import Times
from normkit.kernels import cpu

SHAPES = {"LeNet-5": (256, 6, 28, 28), "ResNet-18": (32, 64, 56, 56)}
ROUNDS = 40


def pair(kind: type[nn.BatchNorm2d], channels: int) -> tuple[nn.Module, nn.Module]:
    """Return the two layers of Caffe, and the merged one."""
    return nn.Sequential(kind(channels, affine=False), nk.Scale(channels)), kind(channels)


def step(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return forward and backward in training mode."""
    x = x.clone().requires_grad_()
    leaves, dy = [x, *layer.parameters()], torch.randn_like(x)

    def run() -> None:
        torch.autograd.grad(layer(x), leaves, dy)

    return run


def evaluation(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return forward in evaluation mode."""
    layer.eval()

    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def measure(sides: Mapping[str, Callable[[], None]]) -> Times:
    """Run all sides once per round, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS + 2):
        for name, run in sides.items():
            begin = time.process_time()
            run()
            seconds[name].append(time.process_time() - begin)
    return Times({name: tuple(each[2:]) for name, each in seconds.items()})


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {cpu.describe()}")
    print("| input | layers of | training step: two layers, merged | ratio | evaluation | ratio |")
    for network, shape in SHAPES.items():
        for name, kind in (("normkit", nk.BatchNorm2d), ("torch.nn", nn.BatchNorm2d)):
            cells = [f"{network}, {' × '.join(map(str, shape))}", name]
            for make in (step, evaluation):
                x = torch.randn(shape)
                two, merged = (make(layer, x) for layer in pair(kind, shape[1]))
                times = measure({"two": two, "merged": merged})
                ms = [f"{times.of(side) * 1e3:.2f}" for side in ("two", "merged")]
                middle, low, high = times.ratio("two", "merged")
                cells += [f"{', '.join(ms)} ms", f"{middle:.2f} [{low:.2f}, {high:.2f}]"]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
