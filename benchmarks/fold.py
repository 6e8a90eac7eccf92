"""Fold networks: what of them can be folded, how exact that is, and what it brings.

    python -m benchmarks.fold                                # exactness, a few minutes
    python -m benchmarks.fold --times resnet18 mobilenet_v2 --batches 1 32 --threads 1 2
    python -m benchmarks.fold --times resnet18 --compile     # torch.compile too, minutes a network
    python -m benchmarks.fold --torchvision                  # its own networks too

Networks are ResNet-18 and 50, DenseNet-121 and MobileNetV2 as torchvision writes them
(networks.py), a U-Net with transposed convolutions, and those of the lab, with random weights and
statistics; fold_trained.py has networks with their trained weights. Beside ours:
``torch.fx.experimental.optimization.fuse``.

Times are of an evaluation without gradients, all versions in turn in one process, medians with
the 95 % interval of the ratio; of the processor on one thread, else by the clock on the wall.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

import normkit as nk
from benchmarks.networks import NETWORKS
from normkit.bench.limits import machine
from normkit.bench.stopwatch import Times
from normkit.lab import models

LAB = ("lenet5", "convnet4", "alexnet", "cifar10-quick", "resnet20", "densenet", "denoiser")
"""Networks of the lab with batch normalization, for images of 32×32."""


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with batch normalization."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        pairs = list(zip((3, *widths[:-1]), widths, strict=True))
        self.down = nn.ModuleList(_double(a, b) for a, b in pairs)
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(b, a, 2, 2, bias=False), nn.BatchNorm2d(a), nn.ReLU())
            for a, b in reversed(pairs[1:])
        )
        self.merge = nn.ModuleList(_double(2 * a, a) for a, _ in reversed(pairs[1:]))
        self.out = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else nn.functional.max_pool2d(x, 2))
            levels.append(x)
        for up, merge, level in zip(self.up, self.merge, reversed(levels[:-1]), strict=True):
            x = merge(torch.cat([up(x), level], 1))
        return self.out(x)


def _double(before: int, after: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width in (before, after):
        conv = nn.Conv2d(width, after, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def settled(model: nn.Module) -> nn.Module:
    """Give batch normalization statistics as from training; the weights stay random."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.2, generator=generator)
                nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    return model.eval()


Make = Callable[[], nn.Module]


def networks(torchvision: bool) -> Iterator[tuple[str, Make, int]]:
    """Yield name, function that builds it, and the height of its images."""
    for name, make in NETWORKS.items():
        yield name, make, 224
    yield "unet", UNet, 128
    for name in LAB:
        yield f"lab {name}", functools.partial(
            models.build, name, norm="torch-batch", in_channels=3, size=32
        ), 32  # fmt: skip
    if torchvision:
        module = importlib.import_module("torchvision.models")
        for name in ("resnet18", "resnet50", "mobilenet_v2", "densenet121", "googlenet",
                     "shufflenet_v2_x1_0", "mnasnet1_0", "efficientnet_b0"):  # fmt: skip
            options = {"init_weights": False} if name == "googlenet" else {}
            make = functools.partial(getattr(module, name), weights=None, **options)
            yield f"torchvision {name}", make, 224


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = model(x)
    return y if isinstance(y, Tensor) else y[0]


def apart(y: Tensor, expected: Tensor) -> float:
    return float((y.double() - expected.double()).abs().max() / expected.abs().max())


def by_definition(model: nn.Module) -> nn.Module:
    """Fold each batch normalization into the convolution that was defined before it."""
    for parent in list(model.modules()):
        before: str | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and before is not None:
                setattr(parent, before, fuse_conv_bn_eval(getattr(parent, before), child))
                setattr(parent, name, nn.Identity())
                before = None
            elif isinstance(child, nn.Conv2d):
                before = name
    return model


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


def exactness(name: str, model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Fold a network in both precisions and compare with it on other inputs than the example."""
    y = outputs(model, x)
    wide = copy.deepcopy(model).double()
    z = outputs(wide, x.double())
    try:
        fused = fuse(copy.deepcopy(model))
        peer = {"folded": norms(model) - norms(fused), "float32": apart(outputs(fused, x), y)}
    except Exception as error:  # what fx cannot trace
        peer = {"raises": type(error).__name__}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = nk.fold(model, x[:1])
        nk.fold(wide, x[:1].double())
    row = {
        "network": name, "folded": len(handle.changed),
        "of": len(handle.changed) + len(handle.skipped),
        "float32": apart(outputs(model, x), y), "float64": apart(outputs(wide, x.double()), z),
        "fx": peer,
        "why": sorted({skipped.why for skipped in handle.skipped})[:2],
    }  # fmt: skip
    handle.undo()
    row["undone"] = torch.equal(outputs(model, x), y)
    return row


def interleaved(calls: dict[str, Callable[[], Any]], seconds: float) -> Times:
    """Run all calls in turn, in rotating order, at least five times.

    On one thread the time of the processor counts, which others on the machine hardly change.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    names, end, done = list(calls), time.perf_counter() + seconds, 0
    measured: dict[str, list[float]] = {name: [] for name in names}
    while done < 5 or time.perf_counter() < end:
        for name in (*names[done % len(names) :], *names[: done % len(names)]):
            begin = clock()
            calls[name]()
            measured[name].append(clock() - begin)
        done += 1
    return Times({name: tuple(values) for name, values in measured.items()})


def times(name: str, make: Make, x: Tensor, seconds: float, compiled: bool) -> dict[str, Any]:
    """Time a network as it is, folded by fx and by ours, and compiled, in turn."""
    model = settled(make())
    folded = copy.deepcopy(model)
    nk.fold(folded, x[:1])
    sides: dict[str, nn.Module] = {"eager": model, "normkit": folded}
    try:
        sides["fx"] = fuse(copy.deepcopy(model))
    except Exception as error:
        print(f"{name}: fx cannot trace it: {error}", file=sys.stderr)
    if compiled:
        torch._dynamo.reset()
        sides["compiled"] = torch.compile(copy.deepcopy(model))
        sides["folded, compiled"] = torch.compile(copy.deepcopy(folded))
    with torch.no_grad():
        calls = {side: lambda model=model: model(x) for side, model in sides.items()}
        for call in calls.values():
            call()
        measured = interleaved(calls, seconds)
    threads = torch.get_num_threads()
    row: dict[str, Any] = {"network": name, "batch": len(x), "threads": threads}
    row["clock"] = "processor" if threads == 1 else "wall"
    row["rounds"] = measured.rounds
    row["ms"] = {side: 1e3 * measured.of(side) for side in sides}
    row["faster"] = {side: measured.ratio("eager", side) for side in sides if side != "eager"}
    return row


def keep(row: dict[str, Any], part: str, path: Path | None) -> None:
    """Print a row, and add it to a part of the file if there is one."""
    print(json.dumps(row), flush=True)
    if path is not None:
        content = json.loads(path.read_text()) if path.exists() else {"machine": machine()}
        content.setdefault(part, []).append(row)
        path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", nargs="*", help="time these networks instead")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=10, help="of each row")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--torchvision", action="store_true")
    parser.add_argument("--only", nargs="*", help="of the networks' names")
    parser.add_argument("--into", type=Path, help="JSON file to add the rows to")
    arguments = parser.parse_args()
    torch.manual_seed(0)

    chosen = list(networks(arguments.torchvision))
    if arguments.times is not None:
        for name, make, size in chosen:
            if name not in arguments.times and arguments.times:
                continue
            for threads in arguments.threads:
                torch.set_num_threads(threads)
                for batch in arguments.batches:
                    x = torch.randn(batch, 3, size, size)
                    row = times(name, make, x, arguments.seconds, arguments.compile)
                    keep(row, "times", arguments.into)
    else:
        for name, make, size in chosen:
            if arguments.only is None or name in arguments.only:
                row = exactness(name, settled(make()), torch.randn(3, 3, size, size))
                keep(row, "exactness", arguments.into)


if __name__ == "__main__":
    main()
