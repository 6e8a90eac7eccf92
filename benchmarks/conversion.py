"""What a trained network loses by ``nk.convert`` to other statistics, and what solving saves.

The lab's convolutional network and a narrow ResNet-18 (8 channels at first) are trained on
Fashion-MNIST with batch normalization and converted. Test accuracy, in percent:

- *before*: with batch normalization;
- *taken over*: converted, with γ and β as they were;
- *solved*: ``batches=``, so that each channel of each layer keeps its mean and deviation;
- *least squares*: γ and β of each layer by regression on the former layer's outputs instead;
- *+ epoch*: each of these after one more epoch of training at a fifth of the rate.

    python benchmarks/conversion.py [--seeds 0 1 2] [--epochs 4] [--models NAME] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from normkit.lab import data, models

OPTIONS: dict[str, dict[str, int]] = {"convnet4": {}, "resnet18": {"width": 8}}
KINDS = {"convnet4": ("group", "layer", "instance"), "resnet18": ("group",)}
IMAGES, BATCH, RATE, SAMPLES = 5_000, 100, 0.05, 512

Images = tuple[Tensor, Tensor]


def train(model: nn.Module, images: Images, epochs: int, rate: float, seed: int) -> nn.Module:
    """Train in place, and return the model."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    x, y = images
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model


def accuracy(model: nn.Module, images: Images) -> float:
    """Return the accuracy in evaluation, in percent."""
    model.eval()
    with torch.no_grad():
        hits = [
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(*(part.split(500) for part in images), strict=True)
        ]
    return 100 * sum(hits) / len(images[0])


def pairs(model: nn.Module, names: list[str], x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return input and output of layers, in the order of their calls."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Any:
        return lambda _, inputs, output: calls.__setitem__(name, (inputs[0], output.clone()))

    hooks = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return calls


def least_squares(model: nn.Module, former: nn.Module, x: Tensor) -> nn.Module:
    """Set γ and β of each GroupNorm, one after the other, by regression on the former outputs."""
    names = [name for name, m in model.named_modules() if isinstance(m, nn.GroupNorm)]
    wanted = pairs(former, names, x)
    for name in pairs(model, names, x):
        layer: Any = model.get_submodule(name)
        inputs, _ = pairs(model, [name], x)[name]
        z, y = (
            t.transpose(0, 1).flatten(1)
            for t in (F.group_norm(inputs, layer.num_groups, eps=layer.eps), wanted[name][1])
        )
        centred = z - z.mean(1, keepdim=True)
        gamma = (centred * y).sum(1) / centred.square().sum(1).clamp_min(1e-12)
        with torch.no_grad():
            layer.weight.copy_(gamma)
            layer.bias.copy_(y.mean(1) - gamma * z.mean(1))
    return model


def one_seed(name: str, seed: int, epochs: int, images: data.Dataset) -> dict[str, float]:
    """Train one network, convert copies of it, and return the accuracy of each."""

    def prepared(split: data.Split) -> Images:
        return (split.images.float() / 255 - 0.286) / 0.353, split.labels

    training, test = prepared(images.train.take(IMAGES, seed=seed)), prepared(images.test)
    torch.manual_seed(seed)
    network = models.build(name, norm="torch-batch", **OPTIONS[name])
    train(network, training, epochs, RATE, seed)
    batches = training[0][:SAMPLES].split(128)
    result = {"before": accuracy(network, test)}

    def arms() -> Iterator[tuple[str, nn.Module]]:
        for kind in KINDS[name]:
            yield f"{kind}, taken over", converted(kind)
            yield f"{kind}, solved", converted(kind, batches=batches)
        yield "group, least squares", least_squares(converted("group"), network, training[0][:512])

    def converted(kind: str, **options: Any) -> nn.Module:
        model = copy.deepcopy(network)
        nk.convert(model, kind, **options)
        return model

    for arm, model in arms():
        result[arm] = accuracy(model, test)
        result[f"{arm}, + epoch"] = accuracy(train(model, training, 1, RATE / 5, seed + 1), test)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--models", nargs="*", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = data.load("fashion-mnist")
    table: dict[str, dict[str, list[float]]] = {}
    for name in options.models:
        columns: dict[str, list[float]] = {}
        for seed in options.seeds:
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            for arm, value in one_seed(name, seed, options.epochs, images).items():
                columns.setdefault(arm, []).append(value)
        table[name] = columns
        print(f"{name}: mean and deviation over {len(options.seeds)} seeds, %")
        for arm, values in columns.items():
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"  {arm:32} {statistics.mean(values):5.1f} ± {spread:.1f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
