"""How often the lab's intervals contain the effect, when seeds and test images are both drawn.

    python benchmarks/lab_coverage.py             # from lab_coverage.json: a second
    python benchmarks/lab_coverage.py --record    # trains the networks first: 10 minutes

Sixty-four trainings of LeNet-5 on Fashion-MNIST, 32 seeds with batch normalization and the same
32 without, each with what it makes of all 10,000 test images. These seeds and images stand for
all there are: the effect is known. A study draws a few of the seeds and some of the images, as many
of each class, both at random and with replacement, as from a population without end, and computes
the interval of the difference between the arms as the lab does. A second interval knows of the
seeds only; a third is what the second would be if every study had all images, and shows what
Student's t makes of seeds that are not normal.
"""

from __future__ import annotations

import argparse
import base64
import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normkit.lab.crossed import image_error
from normkit.lab.verdicts import interval

FILE = Path(__file__).with_suffix(".json")
SEEDS = range(100, 132)
ARMS = {"with BN": "batch", "without BN": "none"}
CLASSES, IMAGES = 10, 10_000
STUDIES = 400
DESIGNS = tuple((seeds, images) for images in (500, 1000) for seeds in (5, 10))
"""Seeds and test images of a study."""


def differences(recorded: Mapping[str, str]) -> np.ndarray:
    """Return, of each seed and image, whether it is right with BN less whether it is without.

    The images are in the order of their classes.
    """
    first, second = (unpacked(recorded[arm]) for arm in ARMS)
    return first - second


def _packed(right: np.ndarray) -> str:
    return base64.b85encode(lzma.compress(np.packbits(right).tobytes())).decode()


def unpacked(text: str) -> np.ndarray:
    """Return whether each seed is right on each image, as 0 and 1."""
    packed = np.frombuffer(lzma.decompress(base64.b85decode(text)), dtype=np.uint8)
    return np.unpackbits(packed, count=len(SEEDS) * IMAGES).reshape(-1, IMAGES).astype(np.float64)


def coverage(
    population: np.ndarray, seeds: int, images: int, studies: int = STUDIES
) -> dict[str, Any]:
    """Return how often each interval contains the population's effect, and the mean half widths."""
    rng = np.random.default_rng([seeds, images])
    effect = population.mean()
    of_seeds = population.mean(axis=1)
    contained: dict[str, list[bool]] = {"seeds and images": [], "seeds": [], "all images": []}
    widths: dict[str, list[float]] = {name: [] for name in contained}
    in_class = IMAGES // CLASSES
    for _ in range(studies):
        rows = rng.integers(len(population), size=seeds)
        columns = rng.integers(in_class, size=(images // CLASSES, CLASSES))
        drawn = population[rows][:, (columns + in_class * np.arange(CLASSES)).ravel()]
        means, shared = drawn.mean(axis=1), image_error(list(drawn)).deviation
        for name, (_, low, high) in {
            "seeds and images": interval(means, shared=shared),
            "seeds": interval(means),
            "all images": interval(of_seeds[rows]),
        }.items():
            contained[name].append(bool(low <= effect <= high))
            widths[name].append((high - low) / 2)
    return {
        "seeds": seeds,
        "images": images,
        "coverage": {name: round(float(np.mean(each)), 4) for name, each in contained.items()},
        "half width, points": {
            name: round(100 * float(np.mean(each)), 3) for name, each in widths.items()
        },
    }


def components(population: np.ndarray) -> dict[str, float]:
    """Return the standard deviations of seeds, images and the rest, in points."""
    of_seeds, of_images = population.mean(axis=1, keepdims=True), population.mean(axis=0)
    rest = population - of_seeds - of_images + population.mean()
    parts = {"seeds": of_seeds, "images": of_images, "seed and image": rest}
    return {name: 100 * float(part.std()) for name, part in parts.items()}


def record() -> dict[str, str]:
    """Train the networks; return which test images each classifies correctly, packed, by arm."""
    from normkit.allocator import keep_freed_memory
    from normkit.lab import data
    from normkit.lab.by_image import unpack
    from normkit.lab.config import RunConfig
    from normkit.lab.training import train

    class Last:
        """A log that keeps the last vector of test accuracy."""

        right: np.ndarray

        def record(self, step: int, epoch: int, metrics: Any, vectors: Any = None) -> None:
            if vectors and "test_accuracy" in vectors:
                self.right = unpack(vectors["test_accuracy"], IMAGES)

        def checkpoint(self, step: int, state: bytes) -> None:
            pass

    keep_freed_memory()
    dataset = data.load("fashion-mnist")
    by_class = np.argsort(dataset.test.take(IMAGES, seed=0).labels.numpy(), kind="stable")
    recorded = {}
    for arm, norm in ARMS.items():
        rights = []
        for seed in SEEDS:
            config = RunConfig(
                model="lenet5", norm=norm, lr=0.1, train_images=30_000, test_images=IMAGES,
                batch_size=64, drop_last=True, epochs=1, seed=seed,
            )  # fmt: skip
            log = Last()
            train(config, dataset, log, checkpoint_seconds=1e9)
            rights.append(log.right[by_class])
            print(f"{arm}, seed {seed}: {log.right.mean():.4f}", flush=True)
        recorded[arm] = _packed(np.concatenate(rights))
    return recorded


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as text."""
    lines = [f"coverage, and mean half width in points: {', '.join(results[0]['coverage'])}"]
    for each in results:
        covered, widths = each["coverage"], each["half width, points"]
        lines.append(
            f"{each['seeds']:2} seeds, {each['images']:4} images: "
            + "  ".join(f"{100 * value:5.1f} %" for value in covered.values())
            + "  "
            + "  ".join(f"{value:5.2f}" for value in widths.values())
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="train the networks first")
    if parser.parse_args().record:
        FILE.write_text(json.dumps({"recorded": record()}, indent=1) + "\n", encoding="utf-8")
    recorded = json.loads(FILE.read_text(encoding="utf-8"))["recorded"]
    population = differences(recorded)
    results = [coverage(population, *design) for design in DESIGNS]
    print(f"effect {100 * population.mean():.2f} points; standard deviations", end=" ")
    print(", ".join(f"{n} {v:.2f}" for n, v in components(population).items()))
    print(table(results))
    content = {"results": results, "recorded": recorded}
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
