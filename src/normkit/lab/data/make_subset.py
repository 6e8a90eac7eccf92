"""Draw the images shipped with the package: 500 per class to train on, 100 to test with.

``python -m normkit.lab.data.make_subset FOLDER`` writes them from the whole Fashion-MNIST, and
beside them which images of the official files they are. Their
content does not depend on the machine, and its SHA-256 stand in the catalogue; the compressed
bytes may differ by the version of zlib.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import sys
from pathlib import Path

import torch

from normkit.lab.data import idx
from normkit.lab.data.catalogue import SPECS, SUBSET_PLACES
from normkit.lab.data.split import Dataset, Split

__all__ = ["choose", "make_subset"]

SEED = 20170828
PER_CLASS = (500, 100)


def choose(labels: list[int], per_class: int, seed: int) -> list[int]:
    """Return positions of ``per_class`` random entries of each label, in ascending order.

    Sorts by Python's ``random()``, the one generator whose numbers are promised to stay the same.

    >>> [["a", "b", "c", "d"][i] for i in choose([0, 0, 1, 1], 1, seed=0)]
    ['b', 'd']
    """
    generator = random.Random(seed)
    keys = [generator.random() for _ in labels]
    chosen: list[int] = []
    for label in sorted(set(labels)):
        mine = [i for i, other in enumerate(labels) if other == label]
        chosen += sorted(mine, key=keys.__getitem__)[:per_class]
    return sorted(chosen)


def make_subset(dataset: Dataset, folder: Path) -> dict[str, tuple[str, int]]:
    """Write the subset's six files into ``folder``; return SHA-256 and size of each content."""
    folder.mkdir(parents=True, exist_ok=True)
    names = iter(file.name for file in SPECS["fashion-mnist"].files)
    places = iter(file.name for file in SUBSET_PLACES)
    checksums: dict[str, tuple[str, int]] = {}
    halves: tuple[tuple[Split, int], ...] = (
        (dataset.train, PER_CLASS[0]),
        (dataset.test, PER_CLASS[1]),
    )
    for split, per_class in halves:
        subset = choose(split.labels.tolist(), per_class, SEED)
        images = split.images[subset, 0]
        labels = split.labels[subset].to(torch.uint8)
        chosen = torch.zeros(len(split), dtype=torch.uint8)
        chosen[subset] = 1
        for values, name in (
            (images, next(names)),
            (labels, next(names)),
            (chosen, next(places)),
        ):
            data = idx.encode(values)
            # mtime=0 and no name: the same content gives the same file.
            (folder / f"{name}.gz").write_bytes(gzip.compress(data, 9, mtime=0))
            checksums[name] = (hashlib.sha256(data).hexdigest(), len(data))
    return checksums


if __name__ == "__main__":
    from normkit.lab.data.loading import load

    for name, (digest, size) in make_subset(
        load("fashion-mnist", allow_subset=False), Path(sys.argv[1])
    ).items():
        print(name, digest, size)
