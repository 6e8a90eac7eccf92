"""Read a data set from a folder with its files, verifying them first.

What is checked is what is used: a file is read into memory once, its SHA-256 taken there, and the
tensors made from the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from normkit.errors import DataError, how_to_install, message
from normkit.lab.data import cifar, idx
from normkit.lab.data.catalogue import File, Spec
from normkit.lab.data.split import Dataset, Split

__all__ = ["UnavailableError", "cache_folder", "find", "read", "read_places"]


class UnavailableError(Exception):
    """Raised if a source lacks the data set, with the reason; the next source may have it."""


def cache_folder() -> Path:
    """Return the folder for downloads: ``$NORMKIT_CACHE``, or the system's cache folder.

    Raises:
        UnavailableError: the variable is not set and platformdirs is not installed.
    """
    if named := os.environ.get("NORMKIT_CACHE"):
        return Path(named)
    try:
        import platformdirs
    except ImportError:
        raise UnavailableError(f"platformdirs is missing: {how_to_install('lab')}") from None
    return Path(platformdirs.user_cache_dir("normkit"))


def find(spec: Spec, folder: Path) -> list[tuple[File, Path]]:
    """Find the files of a data set in a folder.

    Raises:
        UnavailableError: it does not.
    """
    if not folder.is_dir():
        raise UnavailableError(f"no folder {folder}")
    paths: list[tuple[File, Path]] = []
    for file in spec.files:
        # Compressed as published, or decompressed by another tool.
        names = (file.name + ".gz", file.name) if spec.is_idx else (file.name,)
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is not None:
            paths.append((file, path))
        elif spec.is_idx:
            raise UnavailableError(f"no {file.name}.gz in {folder}")
    if not paths:
        raise UnavailableError(f"no {' and no '.join(f.name for f in spec.files)} in {folder}")
    # Either form of an archive holds everything.
    return paths if spec.is_idx else paths[:1]


def _verified(file: File, path: Path) -> bytes:
    # An IDX file may come compressed; an archive is checked as it is.
    data = idx.content(path, file.size, unpack=path.name == f"{file.name}.gz")
    if len(data) != file.size:
        raise DataError(
            message(
                f"{path.name} to hold {file.size} bytes",
                f"{len(data)}, in {path}",
                "get the official file again",
            )
        )
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256:
        raise DataError(
            message(
                f"{path.name} with SHA-256 {file.sha256}",
                f"{digest}, in {path}",
                "get the official file again: this one is damaged or another file",
            )
        )
    return data


def read(spec: Spec, folder: Path, origin: str, *, subset: bool = False) -> Dataset:
    """Verify and read a data set's files.

    Raises:
        UnavailableError: the folder does not have them.
        DataError: it has, and they are damaged.
    """
    paths = find(spec, folder)
    halves: list[Split] = []
    if spec.is_idx:
        tensors = [
            idx.decode(_verified(file, path), f"{path.name} in {folder}") for file, path in paths
        ]
        # Images and labels to train on, then those to test with: the order of the catalogue.
        for images, labels in (tensors[:2], tensors[2:]):
            pixels = images.unsqueeze(1) if images.ndim == 3 else images
            halves.append(Split(pixels, labels.to(torch.int64), spec.mean, spec.std))
    else:
        file, path = paths[0]
        data = _verified(file, path)
        for members in (file.train, file.test):
            pixels, labels = cifar.read(data, members, str(path), spec.shape, file.label_bytes)
            halves.append(Split(pixels, labels, spec.mean, spec.std))
    for half, count in zip(halves, spec.counts, strict=True):
        if tuple(half.images.shape) != (count, *spec.shape):
            raise DataError(
                message(
                    f"{spec.title} with images {(count, *spec.shape)}",
                    f"{tuple(half.images.shape)}",
                    "get the official files",
                )
            )
    train, test = halves
    return Dataset(
        spec.name, spec.title, origin, spec.licence, spec.classes, train, test, subset=subset
    )


def read_places(files: tuple[File, ...], folder: Path) -> tuple[np.ndarray, ...]:
    """Read which images of the official files a subset has, in its order.

    Raises:
        DataError: a file is missing or damaged.
    """
    names = [f"{file.name}.gz" for file in files]
    return tuple(
        np.flatnonzero(idx.decode(_verified(file, folder / name), name).numpy())
        for file, name in zip(files, names, strict=True)
    )
