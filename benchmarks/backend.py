"""Training steps of compiled networks with normkit's kernels, beside ``torch.nn``'s.

    python -m benchmarks.backend                            # twenty minutes on two idle cores
    python -m benchmarks.backend --networks resnet18 --seconds 30 --allocators tuned
    python -m benchmarks.backend --by inductor --networks resnet18 mobilenet_v2
    python -m benchmarks.backend --channels-last

Two questions. By ``backend``: ``torch.compile(model, backend="normkit")`` beside the model as it
is. By ``inductor``: ``torch.compile(model)`` after ``nk.accelerate(model)``, beside it without, and
beside the accelerated model that is not compiled (``eager``). With ``--channels-last`` all these
are in that memory format, beside ``torch.nn`` in the usual one (``contiguous``). The networks are
ResNet-18 and 50, DenseNet-121 and MobileNetV2 as torchvision writes them (networks.py), on random
images, and those of the lab, on random images of 32×32. A step resets the gradients and runs
forward, loss, backward and SGD with momentum; an evaluation is forward without gradients. All sides
start from the same weights and take turns in one process, in rotating order. Ratios are taken round
by round; the median is printed with the 95 % interval of the median. Each allocator has a process
of its own. The losses of the first two steps are printed too, since they must agree.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from benchmarks.networks import NETWORKS
from normkit.bench.limits import machine
from normkit.bench.processes import ALLOCATORS, environment
from normkit.bench.stopwatch import time_interleaved
from normkit.lab import models

ROOT = Path(__file__).parents[1]


LAB = {
    "vit": ("vit", "layer"), "lenet5": ("lenet5", "torch-batch"),
    "cifar10-quick": ("cifar10-quick", "torch-batch"), "denoiser": ("denoiser", "torch-batch"),
    "densenet": ("densenet", "torch-batch"), "alexnet": ("alexnet", "torch-batch"),
    "resnet18-groups": ("resnet18", "group"), "resnet34-lab": ("resnet34", "torch-batch"),
}  # fmt: skip
"""Networks of the lab, for images of 32×32, and their normalizer."""


def _build(name: str, batch: int, size: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the network, its input, and what it is to return: classes, or images."""
    if name in NETWORKS:
        return NETWORKS[name](), torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))
    model, norm = LAB[name]
    images = torch.randn(4 * batch, 3, 32, 32)
    labels = images if models.OUTPUTS[model] == "images" else torch.randint(10, (4 * batch,))
    return models.build(model, norm=norm, in_channels=3, size=32), images, labels


def _compile(by: str, model: nn.Module, last: bool) -> tuple[dict[str, Any], list[Any]]:
    """Return what runs each side, and what is to be printed of ours."""
    sides: dict[str, Any] = {"contiguous": copy.deepcopy(model)} if last else {}
    if last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    twin = copy.deepcopy(model)
    if by == "backend":
        backend = nk.Backend()
        sides |= {"torch": model, "normkit": torch.compile(twin, backend=backend)}
        return sides, backend.graphs
    handle = nk.accelerate(twin)
    sides = {side: torch.compile(each) for side, each in sides.items()}
    sides |= {"torch": torch.compile(model), "normkit": torch.compile(twin)}
    return {**sides, "eager": copy.deepcopy(twin)}, [handle]


def measure(
    by: str, name: str, batch: int, size: int, seconds: float, last: bool
) -> dict[str, Any]:
    """Time all sides of a network, in training and in evaluation."""
    # Networks share functions, of which Dynamo compiles eight versions and runs others eagerly.
    torch.compiler.reset()
    torch.manual_seed(0)
    model, images, labels = _build(name, batch, size)
    compiled, reports = _compile(by, model, last)
    formats = dict.fromkeys(compiled, images)
    if last:
        formats = dict.fromkeys(compiled, images.contiguous(memory_format=torch.channels_last))
        formats["contiguous"] = images
    optimizers = {
        side: torch.optim.SGD(each.parameters(), 1e-3, 0.9) for side, each in compiled.items()
    }
    loss_of = F.mse_loss if labels is images else F.cross_entropy

    def step(side: str) -> float:
        torch.manual_seed(0)  # of dropout
        optimizers[side].zero_grad(set_to_none=True)
        loss = loss_of(compiled[side](formats[side]), labels)
        loss.backward()
        optimizers[side].step()
        return loss.item()

    def evaluate(side: str) -> None:
        with torch.no_grad():
            compiled[side](formats[side])

    losses = [[step(side) for side in compiled] for _ in range(2)]
    record: dict[str, Any] = {"network": name, "shape": list(images.shape), "losses": losses}
    for mode, run in (("train", step), ("eval", evaluate)):
        for each in compiled.values():
            each.train(mode == "train")
        record[mode] = _time(run, list(compiled), seconds)
    record["fused"] = [str(report).splitlines()[0] for report in reports]
    return record


def _time(run: Callable[[str], Any], sides: list[str], seconds: float) -> dict[str, Any]:
    """Return the milliseconds of each side, and their ratios to those of ours."""
    times = time_interleaved({side: lambda side=side: run(side) for side in sides}, seconds=seconds)
    ratio, low, high = times.ratio("torch", "normkit")
    record: dict[str, Any] = {
        "ms": {side: 1e3 * times.of(side) for side in sides},
        "ratio": ratio, "interval": [low, high], "rounds": times.rounds,
    }  # fmt: skip
    others = [side for side in sides if side not in ("torch", "normkit")]
    record["others"] = {side: list(times.ratio(side, "normkit")) for side in others}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--by", choices=("backend", "inductor"), default="backend")
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS, *LAB], default=list(NETWORKS))
    parser.add_argument("--allocators", nargs="+", choices=ALLOCATORS, default=list(ALLOCATORS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each network and mode")
    parser.add_argument("--channels-last", action="store_true", help="all in this memory format")
    parser.add_argument("--json", type=Path, help="write all records to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        for name in options.networks:
            record = measure(
                options.by, name, options.batch, options.size, options.seconds,
                options.channels_last,
            )  # fmt: skip
            print(json.dumps(record), flush=True)
        return
    records = []
    arguments = ["--batch", str(options.batch), "--size", str(options.size),
                 "--seconds", str(options.seconds), "--by", options.by,
                 *["--channels-last"] * options.channels_last]  # fmt: skip
    for allocator in options.allocators:
        command = [sys.executable, "-m", "benchmarks.backend", "--worker", *arguments,
                   "--networks", *options.networks]  # fmt: skip
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=dict(environment(allocator))
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                record = {"allocator": allocator, **json.loads(line)}
                records.append(record)
                _print(record)
        if process.returncode:
            sys.exit(process.returncode)
        times = [record["train"] for record in records if record["allocator"] == allocator]
        for side in ("torch", *times[0]["others"]):
            ratios = [
                each["ratio"] if side == "torch" else each["others"][side][0] for each in times
            ]
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            print(
                f"{allocator}: training steps, {side} over normkit {mean:.2f}, geometric mean",
                flush=True,
            )
    if options.json:
        text = json.dumps({"machine": machine(), "records": records}, indent=1)
        options.json.write_text(text + "\n")


def _print(record: dict[str, Any]) -> None:
    for mode in ("train", "eval"):
        times = record[mode]
        ms = "".join(f"{side} {ms:.0f} ms, " for side, ms in times["ms"].items())
        ratios = "torch over normkit {:.2f} [{:.2f}, {:.2f}]".format(
            times["ratio"], *times["interval"]
        )
        for side, figures in times["others"].items():
            ratios += "; {} over normkit {:.2f} [{:.2f}, {:.2f}]".format(side, *figures)
        print(
            f"{record['allocator']:8}{record['network']:13}{mode:6}{ms}{ratios}; "
            f"{times['rounds']} rounds",
            flush=True,
        )
    print(f"        losses {record['losses']}; {'; '.join(record['fused'])}", flush=True)


if __name__ == "__main__":
    main()
