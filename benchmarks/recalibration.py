"""How exact `recalibrate` is, how sure it says it is, and what it takes, beside two others.

    python benchmarks/recalibration.py                # minutes; needs pip install '.[lab,bench]'
    python benchmarks/recalibration.py --trials 50    # fewer trials for the coverage

Each network is trained for a while on Fashion-MNIST. The truth are the population statistics of
all 60,000 training images, in float64: passes over the whole set, each layer's moments taken while
the layers before it use theirs, until no moment moves by more than a ten-thousandth of a deviation
any more. That is neither our code nor the peers'. Errors are root mean squares over channels, of
the mean in deviations or of the variance relative to itself, whichever is larger; of a network, of
its worst layer.

Times: the sides in turn, several rounds in one process, medians; batches are in memory, so no
time goes to a loader.
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
import torch.nn.functional as F
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

import normkit as nk
from normkit.lab import data, models

NETWORKS: dict[str, dict[str, Any]] = {
    "BN-LeNet": {
        "name": "lenet5", "act": "sigmoid", "padding": 0, "pool": "avg", "init": "xavier",
        "lr": 1.0, "images": 60_000,
    },
    "ResNet-18, an eighth as wide, 16 pixels": {
        "name": "resnet18", "width": 8, "size": 16, "lr": 0.1, "images": 10_000,
    },
}  # fmt: skip


def trained(spec: dict[str, Any], train: data.Split) -> nn.Module:
    """The network, an epoch old."""
    options = {key: value for key, value in spec.items() if key not in ("lr", "images")}
    torch.manual_seed(0)
    model = models.build(norm="torch-batch", **options)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), spec["lr"])
    split = train.take(spec["images"], seed=0)
    for images, labels in data.batches(
        split, 256, size=spec.get("size", 28), seed=0, channels_last=True
    ):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def population(model: nn.Module, train: data.Split, size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The truth; see the top of this file."""
    model = copy.deepcopy(model).double().eval()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    # Only to begin with.
    nk.recalibrate(model, list(_images(train, 500, size, torch.float64))[:20], layerwise=True)
    moved = 1.0
    while moved > 1e-4:
        sums: dict[str, list[Tensor]] = {name: [] for name in layers}

        hooks = [
            layer.register_forward_pre_hook(_sum(sums[name])) for name, layer in layers.items()
        ]
        with torch.no_grad():
            for images in _images(train, 500, size, torch.float64):
                model(images)
        for hook in hooks:
            hook.remove()
        moved = 0.0
        for name, layer in layers.items():
            # About the last pass's mean, which is near: nothing cancels.
            first, second, count = torch.stack(sums[name]).sum(0).unbind(0)
            step = first / count
            variance = (second - count * step.square()) / (count - 1)
            scale = (variance + layer.eps).sqrt()
            moved = max(moved, float((step / scale).abs().max()))
            moved = max(moved, float(((variance - layer.running_var) / scale.square()).abs().max()))
            layer.running_mean += step
            layer.running_var.copy_(variance)
            found[name] = (layer.running_mean.clone(), variance)
        print(f"  truth: moved by {moved:.1e}", flush=True)
    return found


def _sum(sums: list[Tensor]) -> Callable[..., None]:
    """Make a hook that adds up deviations from the running mean, and their squares."""

    def hook(layer: Any, args: tuple[Tensor]) -> None:
        x = args[0]
        axes = [0, *range(2, x.dim())]
        off = x - layer.running_mean.view([1, -1] + [1] * (x.dim() - 2))
        part = torch.stack([off.sum(axes), off.square().sum(axes)])
        sums.append(torch.cat([part, torch.full_like(part[:1], x.numel() / x.shape[1])]))

    return hook


def _images(
    train: data.Split, batch: int, size: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Any:
    for images, _ in data.batches(train, batch, size=size, seed=seed, channels_last=True):
        yield images.to(dtype)


def errors(model: nn.Module, truth: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Compute the error of the running statistics, by layer."""
    found = {}
    for name, (mean, variance) in truth.items():
        layer: Any = model.get_submodule(name)
        scale = variance + layer.eps
        off = (layer.running_mean - mean).square() / scale
        wide = ((layer.running_var - variance) / scale).square()
        found[name] = float(torch.maximum(off.mean(), wide.mean()).sqrt())
    return found


def sides(size: int) -> dict[str, Callable[[nn.Module, list[Tensor]], Any]]:
    """What is compared; each leaves the model with its statistics."""

    def ours(**options: Any) -> Callable[[nn.Module, list[Tensor]], Any]:
        return lambda model, batches: nk.recalibrate(model, batches, progress=False, **options)

    return {
        "fvcore, 200 batches": lambda m, b: update_bn_stats(m.train(), b, 200),
        "update_bn, 200 batches": lambda m, b: update_bn(b, m),
        "recalibrate, 200 batches": ours(samples=200 * size),
        "recalibrate, 10,000 samples": ours(),
        "recalibrate, layer by layer": ours(layerwise=True),
        "recalibrate, tolerance 2 %": ours(samples=None, tolerance=0.02),
    }


def compare(
    model: nn.Module, train: data.Split, truth: dict[str, Any], side: int, size: int, rounds: int
) -> list[dict[str, Any]]:
    """Seconds and the worst layer's error of each side, at one batch size."""
    batches = [x for x, _ in zip(_images(train, size, side, seed=1), range(200), strict=False)]
    rows: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name, run in sides(size).items():
            copied = copy.deepcopy(model)
            begin = time.perf_counter()
            run(copied, batches)
            row = rows.setdefault(name, {"seconds": [], "error": []})
            row["seconds"].append(time.perf_counter() - begin)
            row["error"].append(max(errors(copied, truth).values()))
    return [
        {"batch": size, "side": name, "seconds": statistics.median(row["seconds"]),
         "error": statistics.median(row["error"])}
        for name, row in rows.items()
    ]  # fmt: skip


def coverage(
    model: nn.Module,
    train: data.Split,
    truth: dict[str, Any],
    side: int,
    trials: int,
    layerwise: bool,
) -> dict[str, Any]:
    """Share of 95 % intervals that hold the truth, and the errors at 10,000 samples."""
    hits, count, off = 0.0, 0, {name: [] for name in truth}  # type: ignore[var-annotated]
    by_layer = dict.fromkeys(truth, 0.0)
    for trial in range(trials):
        # Drawn with replacement, so that every trial is a sample of its own.
        g = torch.Generator().manual_seed(trial)
        rows = torch.randint(len(train), (10_000,), generator=g)
        part = data.Split(train.images[rows], train.labels[rows], train.mean, train.std)
        drawn = [
            x
            for x, _ in data.batches(
                part, 250, size=side, seed=0, shuffle=False, channels_last=True
            )
        ]
        with nk.recalibrate(model, drawn, layerwise=layerwise, progress=False) as done:
            for name, error in errors(model, truth).items():
                off[name].append(error)
            for name, pair in truth.items():
                held = [
                    ((low <= value) & (value <= high)).double().mean()
                    for (low, high), value in zip(done.interval(name), pair, strict=True)
                ]
                by_layer[name] += float(sum(held)) / 2
                hits += float(sum(held)) / 2
                count += 1
    return {
        "layerwise": layerwise,
        "trials": trials,
        "covered": hits / count,
        "by_layer": {name: share / trials for name, share in by_layer.items()},
        "error": {name: statistics.fmean(values) for name, values in off.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="the network whose name begins so")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    train = data.load("fashion-mnist").train
    results: dict[str, Any] = {}
    for title, spec in NETWORKS.items():
        if asked.only and not title.startswith(asked.only):
            continue
        print(title, flush=True)
        model, side = trained(spec, train), spec.get("size", 28)
        truth = population(model, train, side)
        here: dict[str, Any] = {"layers": len(truth), "times": [], "coverage": []}
        trials = asked.trials if spec["name"] == "lenet5" else max(2, asked.trials // 20)
        for layerwise in (False, True):
            found = coverage(model, train, truth, side, trials, layerwise)
            here["coverage"].append(found)
            worst = max(found["error"].values())
            print(f"  layerwise={layerwise}: {trials} trials, 95 % intervals hold the truth in "
                  f"{100 * found['covered']:.1f} %, worst layer's error {100 * worst:.2f} %",
                  flush=True)  # fmt: skip
        for size in (32, 256):
            rows = compare(model, train, truth, side, size, asked.rounds)
            here["times"] += rows
            for row in rows:
                print(f"  batches of {size:3}: {row['side']:28} {row['seconds']:7.2f} s  error "
                      f"{100 * row['error']:.2f} %", flush=True)  # fmt: skip
        results[title] = here
        asked.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
