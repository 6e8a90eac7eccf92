"""How many trainings an hour the lab does, beside the same ones written as tutorials write them.

    python benchmarks/lab_speed.py    # half an hour; pip install '.[lab]' pillow, an idle machine

The trainings are those of claim C1, both arms: LeNet-5 on Fashion-MNIST, batch size 256, after each
epoch 10,000 test images. The tutorials' side follows PyTorch's: a `Dataset` that makes a PIL image
of one row of the data, a transform that makes a tensor of it and standardises it, a `DataLoader`,
layers of `torch.nn`, PyTorch's own number of threads, one training after another in one process.
What the transform does is what torchvision's `ToTensor` and `Normalize` do, step by step;
torchvision itself is not needed. It is measured with the loader in the same process, with as many
loading processes as there are cores, and spared all of that: rows become tensors with nothing in
between.

The lab's side is `normkit lab run` itself: planning, starting worker processes, storing every
measurement, checkpoints. Each side is a process of its own, timed from before its first training to
after its last, so that loading PyTorch does not count, but for the lab's workers, which load it
within that time. The sides take turns; medians of the rounds. What else the lab gains, since
a run that several claims need is done once, is counted and not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from normkit.lab import data, machine, models
from normkit.lab.claims import c01
from normkit.lab.claims.claim import PRESETS, Available
from normkit.lab.claims.registry import select

CORES = str(os.cpu_count() or 1)
SIDES = {
    "tutorial": ["--side", "tutorial"],
    "tutorial, loading processes": ["--side", "tutorial", "--loaders", CORES],
    "tutorial without images and transforms": ["--side", "tutorial", "--bare"],
    "lab": ["--side", "lab"],
}
AVAILABLE = Available("full", 60_000, 10_000)


class Images(Dataset[tuple[torch.Tensor, int]]):
    """One image at a time, as torchvision's data sets give them, or with nothing in between."""

    def __init__(self, split: data.Split, *, bare: bool) -> None:
        self.images = split.images[:, 0]
        self.labels = split.labels
        assert split.mean and split.std
        self.mean, self.std = split.mean, split.std
        self.bare = bare

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row, label = self.images[index], int(self.labels[index])
        if self.bare:
            return row[None].float().div(255).sub(self.mean[0]).div(self.std[0]), label
        return self.standardised(to_tensor(Image.fromarray(row.numpy()))), label

    def standardised(self, image: torch.Tensor) -> torch.Tensor:
        """What ``transforms.Normalize`` does."""
        image = image.clone()
        mean = torch.as_tensor(self.mean, dtype=image.dtype)
        std = torch.as_tensor(self.std, dtype=image.dtype)
        if (std == 0).any():
            raise ValueError(f"std must be above 0; got {self.std}")
        return image.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """What ``transforms.ToTensor`` does: (H, W) bytes to (1, H, W) in [0, 1]."""
    pixels = torch.from_numpy(np.array(image, np.uint8, copy=True))
    channels_first = pixels.view(image.height, image.width, 1).permute(2, 0, 1).contiguous()
    return channels_first.to(torch.get_default_dtype()).div(255)


def tutorial(trainings: int, loaders: int, *, bare: bool) -> None:
    """The quickstart's loop."""
    dataset = data.load("fashion-mnist", offline=True)
    for _, config in c01.plan("quick", AVAILABLE)[:trainings]:
        torch.manual_seed(config.seed)
        train = Images(dataset.train.take(config.train_images, seed=config.seed), bare=bare)
        test = Images(dataset.test.take(config.test_images, seed=0), bare=bare)
        train_loader = DataLoader(
            train,
            config.batch_size,
            shuffle=True,
            num_workers=loaders,
            drop_last=config.drop_last,
        )
        test_loader = DataLoader(test, config.batch_size, num_workers=loaders)
        norm = "torch-batch" if config.norm == "batch" else config.norm
        model = models.build(config.model, norm=norm, act=config.act)
        loss_fn = nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
        for _ in range(config.epochs):
            model.train()
            for images, labels in train_loader:
                loss = loss_fn(model(images), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            model.eval()
            correct = 0
            with torch.no_grad():
                for images, labels in test_loader:
                    correct += int((model(images).argmax(1) == labels).sum())
        print(
            f"{config.norm}: test accuracy {correct / len(test):.4f}", file=sys.stderr, flush=True
        )


def lab(trainings: int) -> None:
    """The lab's own command on as many of the claim's runs."""
    from normkit.lab import runner
    from normkit.lab.executors import LocalPool
    from normkit.lab.store import Store
    from normkit.lab.worker import run

    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "lab.sqlite") as store:
        plan = c01.plan("quick", AVAILABLE)[:trainings]
        store.plan("C1", "quick", plan)
        with LocalPool(run, workers=machine.cores(), threads=1) as pool:
            runner.work(store, [config.key for _, config in plan], pool)
        for planned in store.planned("C1", "quick"):
            assert planned.run.status == "done", planned.run.error
            accuracy = planned.run.last("test_accuracy")
            print(f"{planned.run.config.norm}: test accuracy {accuracy:.4f}", file=sys.stderr)


def timed(arguments: list[str], trainings: int) -> float:
    """Trainings an hour of one side, in a process of its own."""
    command = [sys.executable, __file__, "--trainings", str(trainings), *arguments]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return 3600 * trainings / float(ran.stdout)


def shared() -> dict[str, dict[str, int]]:
    """By preset: the runs that all claims plan, and those that are left when equal ones are one."""
    found = {}
    for preset in PRESETS:
        keys = [
            config.key for claim in select(["all"]) for _, config in claim.plan(preset, AVAILABLE)
        ]
        found[preset] = {"planned": len(keys), "trained": len(set(keys))}
    return found


def main() -> None:
    """Measure in turn, print, and write the JSON beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trainings", type=int, default=10, help="the lab's in each process")
    parser.add_argument("--side", choices=["tutorial", "lab"], help="one side only")
    parser.add_argument("--loaders", type=int, default=0)
    parser.add_argument("--bare", action="store_true", help="no PIL images, no transforms")
    given = parser.parse_args()
    if given.side:
        begin = time.perf_counter()
        if given.side == "lab":
            lab(given.trainings)
        else:
            tutorial(given.trainings, given.loaders, bare=given.bare)
        print(time.perf_counter() - begin)
        return
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(given.rounds):
        for side, arguments in SIDES.items():
            # One training follows another there, so two of them, one of each arm, say as much.
            count = given.trainings if side == "lab" else 2
            found[side].append(timed(arguments, count))
            print(
                f"round {number + 1}, {side}: {found[side][-1]:.0f} trainings an hour", flush=True
            )
    medians = {side: statistics.median(values) for side, values in found.items()}
    ratios = {side: medians["lab"] / value for side, value in medians.items() if side != "lab"}
    for side, ratio in ratios.items():
        print(f"lab over {side}: {ratio:.1f}")
    out = Path(__file__).with_suffix(".json")
    content = {
        "machine": machine.summary(),
        "versions": dict(machine.versions()),
        "trainings_an_hour": found,
        "medians": medians,
        "lab_over": ratios,
        "runs": shared(),
    }
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written to {out.name}; runs planned and trained: {content['runs']}")


if __name__ == "__main__":
    main()
