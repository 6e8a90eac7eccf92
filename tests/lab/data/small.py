"""Fashion-MNIST of 30 images, to be loaded as if it were the whole set."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
from pathlib import Path

import torch

from normkit.lab.data import catalogue, idx
from normkit.lab.data.catalogue import File, Spec


@dataclasses.dataclass(frozen=True)
class Small:
    """A small Fashion-MNIST: its description, and its files by name, compressed."""

    spec: Spec
    files: dict[str, bytes]

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder


def make(absent: Path) -> Small:
    """Return 20 + 10 random images of 28×28.

    Args:
        absent: folder of the system's package, which is not there, whatever this machine has.
    """
    generator = torch.Generator().manual_seed(0)
    spec = catalogue.SPECS["fashion-mnist"]
    files: list[File] = []
    packed: dict[str, bytes] = {}
    for file, count in zip(spec.files, (20, 20, 10, 10), strict=True):
        if "images" in file.name:
            values = torch.randint(0, 256, (count, 28, 28), generator=generator)
        else:
            values = torch.arange(count) % 10
        data = idx.encode(values.to(torch.uint8))
        packed[f"{file.name}.gz"] = gzip.compress(data, mtime=0)
        files.append(
            dataclasses.replace(
                file,
                sha256=hashlib.sha256(data).hexdigest(),
                size=len(data),
                md5=hashlib.md5(packed[f"{file.name}.gz"]).hexdigest(),
            )
        )
    changed = dataclasses.replace(
        spec,
        files=tuple(files),
        counts=(20, 10),
        mirrors=("http://127.0.0.1:1/",),
        folder=absent,
    )
    return Small(changed, packed)
