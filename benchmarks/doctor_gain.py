"""Check that the interval of a gain which the doctor prints holds on images it did not see.

Twenty trainings of the textbook's LeNet, of other seeds and lengths, with and without the
incomplete last batch. The doctor gets 2,000 test images and says what population statistics bring.
The truth is the gain on the other 8,000 test images and 50,000 that no training saw. Prints how
many intervals hold it: 95 % would be 19 of 20.

    python benchmarks/doctor_gain.py [--trainings 20]
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import nn
from torch.nn import functional as F

import normkit as nk
from normkit.doctor.scores import score
from normkit.lab import data, models

TRAINED, SEEN = 10_000, 2_000


def batches(x: torch.Tensor, y: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches in the order of the images."""
    return list(zip(x.split(size), y.split(size), strict=True))


def trained(seed: int, x: torch.Tensor, y: torch.Tensor, epochs: int, size: int) -> nn.Module:
    """Train the textbook's LeNet, which ends each epoch with an incomplete batch."""
    torch.manual_seed(seed)
    model = models.build(
        "lenet5", norm="batch", act="sigmoid", padding=0, pool="avg", init="xavier"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(size):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model


def main() -> int:
    """Print a line for each training, and how many intervals hold the gain."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainings", type=int, default=20)
    trainings = parser.parse_args().trainings
    images = data.load("fashion-mnist")

    def prepared(split: data.Split) -> tuple[torch.Tensor, torch.Tensor]:
        return (split.images.float() / 255 - 0.286) / 0.353, split.labels

    x, y = prepared(images.train)
    test_x, test_y = prepared(images.test)
    held = 0
    print("seed  epochs  batch  test %   said [95 %], points    on unseen images  held")
    for seed in range(trainings):
        size, epochs = (256, 250)[seed % 2], 2 + seed % 3
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        mine, rest = order[:TRAINED], order[TRAINED:]
        model = trained(seed, x[mine], y[mine], epochs, size)
        order = torch.randperm(len(test_x), generator=torch.Generator().manual_seed(1_000 + seed))
        seen, unseen = order[:SEEN], order[SEEN:]
        train = batches(x[mine], y[mine], size)
        result = nk.diagnose(model, train, batches(test_x[seen], test_y[seen], 500))
        gain = result.gain
        assert gain is not None
        others = batches(
            torch.cat([test_x[unseen], x[rest]]), torch.cat([test_y[unseen], y[rest]]), 1_000
        )
        before = score(model, others, samples=None).value
        with nk.recalibrate(model, train, progress=False):
            truth = score(model, others, samples=None).value - before
        holds = gain.low <= truth <= gain.high
        held += holds
        print(
            f"{seed:4}  {epochs:6}  {size:5}  {gain.before:6.1f}  {gain.change:6.2f} "
            f"[{gain.low:6.2f}, {gain.high:6.2f}]  {truth:16.2f}  {'yes' if holds else 'no':>4}",
            flush=True,
        )
    print(f"{held} of {trainings} intervals hold the gain on images that the doctor did not see")
    return 0


if __name__ == "__main__":
    sys.exit(main())
