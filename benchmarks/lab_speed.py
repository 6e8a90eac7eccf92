"""How many trainings an hour the lab does, beside the same ones written as tutorials write them.

    python benchmarks/lab_speed.py            # minutes; needs pip install '.[lab]', an idle machine

The trainings are those of claim C1, both arms: LeNet-5 on Fashion-MNIST, batch size 256, after each
epoch 10,000 test images. The tutorials' side follows PyTorch's quickstart: a `Dataset` whose
`__getitem__` turns one image into a tensor and standardises it, a `DataLoader`, layers of
`torch.nn`, PyTorch's own number of threads, one training after another in one process. It is spared
what costs the tutorials more still: no PIL image in between, and the data lie in memory. It is
measured with the loader in the same process and with as many loading processes as there are cores.

The lab's side is `normkit lab run` itself: planning, starting worker processes, storing every
measurement, checkpoints. Each side is a process of its own, timed as a whole, the sides in turn;
medians of the rounds. What else the lab gains, since a run that several claims need is done once,
is counted and not timed.
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

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from normkit.lab import data, machine, models
from normkit.lab.claims import c01
from normkit.lab.claims.claim import PRESETS, Available
from normkit.lab.claims.registry import select

SIDES = {
    "tutorial, loader in the process": ["--side", "tutorial", "--loaders", "0"],
    "tutorial, loading processes": ["--side", "tutorial", "--loaders", str(os.cpu_count() or 1)],
    "lab": ["--side", "lab"],
}
AVAILABLE = Available("full", 60_000, 10_000)


class Images(Dataset[tuple[torch.Tensor, int]]):
    """One image at a time, as torchvision's data sets give them."""

    def __init__(self, split: data.Split) -> None:
        self.images = split.images.numpy()
        self.labels = split.labels.tolist()
        assert split.mean and split.std
        self.mean, self.std = split.mean[0], split.std[0]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(self.images[index]).float().div(255)
        return image.sub(self.mean).div(self.std), self.labels[index]


def tutorial(trainings: int, loaders: int) -> None:
    """The quickstart's loop."""
    dataset = data.load("fashion-mnist", offline=True)
    for _, config in c01.plan("quick", AVAILABLE)[:trainings]:
        torch.manual_seed(config.seed)
        train = Images(dataset.train.take(config.train_images, seed=config.seed))
        test = Images(dataset.test.take(config.test_images, seed=0))
        train_loader = DataLoader(train, config.batch_size, shuffle=True, num_workers=loaders)
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
        print(f"{config.norm}: test accuracy {correct / len(test):.4f}", flush=True)


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
            print(f"{planned.run.config.norm}: test accuracy {accuracy:.4f}", flush=True)


def timed(arguments: list[str], trainings: int) -> float:
    """Trainings an hour of one side, as a whole process."""
    command = [sys.executable, __file__, "--trainings", str(trainings), *arguments]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 3600 * trainings / (time.perf_counter() - begin)


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
    parser.add_argument("--trainings", type=int, default=10, help="in each process")
    parser.add_argument("--side", choices=["tutorial", "lab"])
    parser.add_argument("--loaders", type=int, default=0)
    given = parser.parse_args()
    if given.side == "tutorial":
        return tutorial(given.trainings, given.loaders)
    if given.side == "lab":
        return lab(given.trainings)
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(given.rounds):
        for side, arguments in SIDES.items():
            # The tutorials' side takes long; a few of its trainings say as much.
            count = given.trainings if side == "lab" else max(2, given.trainings // 5)
            found[side].append(timed(arguments, count))
            print(f"round {number + 1}, {side}: {found[side][-1]:.0f} trainings an hour")
    medians = {side: statistics.median(values) for side, values in found.items()}
    best = max(value for side, value in medians.items() if side != "lab")
    print(f"lab over the faster tutorial: {medians['lab'] / best:.1f}")
    out = Path(__file__).with_suffix(".json")
    content = {
        "machine": machine.summary(),
        "versions": dict(machine.versions()),
        "trainings_an_hour": found,
        "medians": medians,
        "lab_over_the_faster_tutorial": medians["lab"] / best,
        "runs": shared(),
    }
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written to {out.name}; runs planned and trained: {content['runs']}")
    return None


if __name__ == "__main__":
    main()
