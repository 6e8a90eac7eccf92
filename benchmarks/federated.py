"""Federated averaging with batch normalization: what becomes of the running statistics.

Five clients of uneven size and uneven classes train the lab's convolutional network on
Fashion-MNIST, for a few rounds of one local epoch. After each round the server has one state dict,
made in four ways that differ in running statistics alone:

- *averaged*: every entry averaged, as a plain FedAvg does;
- *merged*: ``nk.merge``, with the variance between clients;
- *recalibrated*: merged, sent out, ``nk.recalibrate`` on each client's own data, and ``nk.merge``
  of that with what the recalibrations returned;
- *pooled*: recalibrated on all clients' data together, which no client would give away.

Prints the test accuracy of each over the seeds, and how far *recalibrated* is from *pooled*.

    python benchmarks/federated.py [--rounds 10] [--seeds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from normkit.lab import data, models

CLIENTS, IMAGES, SIZE, RATE = 5, 10_000, 50, 0.05
WAYS = ("averaged", "merged", "recalibrated", "pooled")

State = Mapping[str, Tensor]


def network() -> nn.Module:
    """Build the network that all train."""
    return models.build("convnet4", norm="torch-batch", in_channels=1, classes=10)


def shards(labels: Tensor, seed: int) -> list[Tensor]:
    """Give each client a share of every class, drawn from Dirichlet's distribution (0.3)."""
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(len(labels)))
    parts: list[list[Tensor]] = [[] for _ in range(CLIENTS)]
    for label in range(10):
        mine = order[labels[order] == label]
        cuts = (np.cumsum(rng.dirichlet([0.3] * CLIENTS)) * len(mine)).astype(int)
        pieces = torch.tensor_split(mine, torch.from_numpy(cuts[:-1]))
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    shuffled = (torch.cat(part) for part in parts)
    return [part[torch.from_numpy(rng.permutation(len(part)))] for part in shuffled]


def train(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
    """Train one local epoch, without an incomplete last batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    model.train()
    for batch in torch.randperm(len(x), generator=generator).split(SIZE):
        if len(batch) == SIZE:
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


def accuracy(state: State, x: Tensor, y: Tensor) -> float:
    """Return the accuracy in evaluation, in percent."""
    model = network()
    model.load_state_dict(state)
    model.eval()
    with torch.no_grad():
        hits = [
            int((model(images).argmax(1) == labels).sum())
            for images, labels in zip(x.split(500), y.split(500), strict=True)
        ]
    return 100 * sum(hits) / len(x)


def averaged(states: list[State], sizes: list[int]) -> dict[str, Tensor]:
    """Average every entry by the clients' sizes; counts are added, to be fair."""
    share = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    one: dict[str, Tensor] = {}
    for name, first in states[0].items():
        values = torch.stack([state[name] for state in states])
        if first.is_floating_point():
            one[name] = torch.tensordot(share, values.double(), 1).to(first.dtype)
        else:
            one[name] = values.sum(0)
    return one


def statistics_of(state: State) -> list[Tensor]:
    """Return the running statistics of a state dict."""
    return [v.double() for k, v in state.items() if k.endswith(("running_mean", "running_var"))]


def one_seed(seed: int, rounds: int, images: data.Dataset) -> tuple[dict[str, float], float]:
    """Train all rounds; return each way's accuracy, and the distance from the pooled statistics."""

    def prepared(split: data.Split) -> tuple[Tensor, Tensor]:
        return (split.images.float() / 255 - 0.286) / 0.353, split.labels

    x, y = prepared(images.train.take(IMAGES, seed=seed))
    parts = shards(y, seed)
    sizes = [len(part) for part in parts]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    server = network().state_dict()
    states: list[State] = []
    for _ in range(rounds):
        states = []
        for part in parts:
            client = network()
            client.load_state_dict(server)
            train(client, x[part], y[part], generator)
            states.append({name: value.clone() for name, value in client.state_dict().items()})
        server = nk.merge(states, sizes, start=server)
    sent: list[Any] = []
    for part in parts:
        client = network()
        client.load_state_dict(server)
        result = nk.recalibrate(
            client, list(x[part].split(SIZE)), samples=None, layerwise=False, progress=False
        )
        sent.append((client.state_dict(), result))
    pooled = network()
    pooled.load_state_dict(server)
    together = [batch for part in parts for batch in x[part].split(SIZE)]
    nk.recalibrate(pooled, together, samples=None, layerwise=False, progress=False)
    made = {
        "averaged": averaged(states, sizes),
        "merged": server,
        "recalibrated": nk.merge([state for state, _ in sent], [result for _, result in sent]),
        "pooled": pooled.state_dict(),
    }
    far = max(
        float((a - b).abs().max() / b.abs().max())
        for a, b in zip(
            statistics_of(made["recalibrated"]), statistics_of(made["pooled"]), strict=True
        )
    )
    test = prepared(images.test)
    return {way: accuracy(made[way], *test) for way in WAYS}, far


def main() -> int:
    """Print a line for each seed, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    images = data.load("fashion-mnist")
    print("test accuracy, %:  " + "".join(f"{way:>14}" for way in WAYS) + "   from pooled")
    rows = []
    for seed in range(options.seeds):
        row, far = one_seed(seed, options.rounds, images)
        rows.append({"seed": seed, **row, "relative_difference": far})
        figures = "".join(f"{row[way]:14.2f}" for way in WAYS)
        print(f"seed {seed:2}            {figures}   {far:.1e}", flush=True)
    means = {way: statistics.fmean(float(row[way]) for row in rows) for way in WAYS}
    print("mean               " + "".join(f"{means[way]:14.2f}" for way in WAYS))
    if options.json:
        found = {"rounds": options.rounds, "images": IMAGES, "seeds": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
