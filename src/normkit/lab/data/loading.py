"""Find a data set: its sources in order, and the error if none has it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from normkit.errors import DataError, message
from normkit.lab.data.catalogue import SPECS, SUBSET, SUBSET_PLACES, Spec, owner_of, spec_of
from normkit.lab.data.debian import from_package
from normkit.lab.data.fetching import ORIGIN_FILE, fetched
from normkit.lab.data.lighting import lit
from normkit.lab.data.mirrors import from_mirror
from normkit.lab.data.reading import UnavailableError, cache_folder, find, read, read_places
from normkit.lab.data.split import Dataset

__all__ = ["Status", "fetch", "is_here", "load", "status"]

SUBSET_FOLDER = Path(__file__).parent / "subset"


class Status(NamedTuple):
    """Availability of a data set on this machine.

    Attributes:
        name: of the data set.
        available: it is here, whole and checked.
        where: the folder that holds it, or why there is none.
        size: of its files, in bytes; 0 where there are none, or those of another data set.
    """

    name: str
    available: bool
    where: str
    size: int


class _NowhereError(DataError):
    """No source has the data set; distinct from a wrong folder named by the user."""


class _Found(NamedTuple):
    dataset: Dataset
    folder: Path


_Source = tuple[str, Callable[[], _Found]]


def _say(text: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(text)


def _named(spec: Spec, folder: Path, how: str) -> _Found:
    if not folder.is_dir():
        raise DataError(
            message(f"{how} to name a folder", str(folder), "correct it, or leave it out")
        )
    reasons = []
    for inside in ("", spec.name, *spec.aliases):
        try:
            where = folder / inside
            return _Found(read(spec, where, f"a folder named by {how}"), where)
        except UnavailableError as error:
            reasons.append(str(error))
    # The first is about the folder itself, the others about what might be inside it.
    raise UnavailableError(reasons[0])


def _cached(spec: Spec) -> _Found:
    folder = cache_folder() / spec.name
    find(spec, folder)
    note = folder / ORIGIN_FILE
    origin = note.read_text(encoding="utf-8").strip() if note.is_file() else "the cache"
    return _Found(_intact(spec, folder, origin), folder)


def _intact(spec: Spec, folder: Path, origin: str) -> Dataset:
    # The user did not name these files, so damage to them leads to the next source.
    try:
        return read(spec, folder, origin)
    except DataError as error:
        raise UnavailableError(f"damaged: {error}") from error


def _downloaded(spec: Spec, origin: str, fill: Callable[[Path], None]) -> _Found:
    return _Found(fetched(spec, origin, fill), cache_folder() / spec.name)


def _sources(spec: Spec, folder: Path | None, offline: bool, progress: bool) -> Iterator[_Source]:
    """Yield the sources in order; none is accessed before it is called."""
    if folder is not None:
        yield "the folder argument", lambda: _named(spec, Path(folder), "the folder argument")
    if variable := os.environ.get("NORMKIT_DATA"):
        yield "$NORMKIT_DATA", lambda: _named(spec, Path(variable), "$NORMKIT_DATA")
    yield "the cache", lambda: _cached(spec)
    say = _say if progress else lambda text: None
    if spec.folder is not None:
        system = spec.folder
        origin = f"the system's package {spec.package}"
        yield (
            f"the installed package {spec.package}",
            lambda: _Found(_intact(spec, system, origin), system),
        )
        fill = functools.partial(from_package, spec, say=say)
        yield (
            f"the system's package {spec.package}",
            _no_network if offline else lambda: _downloaded(spec, origin, fill),
        )
    for mirror in spec.mirrors:
        get = functools.partial(from_mirror, spec, mirror, progress=progress)
        yield (
            mirror,
            # get and mirror are bound here: the loop moves on before the last is called.
            _no_network if offline else functools.partial(_downloaded, spec, mirror, get),
        )


def _no_network() -> _Found:
    raise UnavailableError("not asked, offline")


def _locate(spec: Spec, folder: Path | None, offline: bool, progress: bool) -> _Found:
    tried: list[tuple[str, str]] = []
    for label, look in _sources(spec, folder, offline, progress):
        try:
            return look()
        except UnavailableError as error:
            tried.append((label, str(error)))
    listed = "\n".join(f"  - {label}: {reason}" for label, reason in tried)
    files = [f"{file.name}.gz" if spec.is_idx else file.name for file in spec.files]
    needed = f"{', '.join(files[:-1])} {'and' if spec.is_idx else 'or'} {files[-1]}"
    raise _NowhereError(
        f"{spec.title} is not on this machine and could not be fetched. Tried, in this order:\n"
        f"{listed}\n"
        f"Fix: put {needed} into a folder and name it with folder=… or NORMKIT_DATA, or run "
        f"`normkit data fetch {spec.name}` where there is a network."
    )


def load(
    name: str,
    *,
    folder: Path | None = None,
    allow_subset: bool = True,
    progress: bool = False,
    offline: bool = False,
) -> Dataset:
    """Load a data set from the first source that has it, downloading it if needed.

    The sources, in order: ``folder``; the folder in ``NORMKIT_DATA``; the cache (``NORMKIT_CACHE``
    or the system's place for caches); the installed system package (Debian's
    dataset-fashion-mnist); the same package, unpacked into the cache and not installed; the
    official mirrors. Every file is checked by its SHA-256 before it is used. Of a folder that the
    user names, damaged files are an error; elsewhere they are a reason to try the next source.

    Args:
        name: "fashion-mnist", "fashion-mnist-lit" (computed from it, see
            :mod:`normkit.lab.data.lighting`), "cifar-10" or "cifar-100".
        folder: has the official files: for Fashion-MNIST its four IDX files, compressed or not,
            for CIFAR the binary or the Python archive. Other files in it do no harm.
        allow_subset: where no source has Fashion-MNIST, give the 5,000 + 1,000 of its images that
            come with the package; ``Dataset.subset`` and ``Dataset.origin`` say so.
        progress: show on standard error what is being fetched.
        offline: never touch the network.

    Raises:
        OptionError: no such data set.
        DataError: no source has it (all are listed, each with its reason), or ``folder`` or
            ``NORMKIT_DATA`` names no folder or damaged files.

    >>> data = load("fashion-mnist", offline=True)
    >>> data.title, data.train.images.dtype, tuple(data.test.images.shape[1:]), data.classes[9]
    ('Fashion-MNIST', torch.uint8, (1, 28, 28), 'Ankle boot')
    """
    spec = spec_of(name)
    owner = owner_of(name)
    try:
        dataset = _locate(owner, folder, offline, progress).dataset
    except _NowhereError:
        if not (allow_subset and owner.name == SUBSET.name):
            raise
        counts = " + ".join(f"{count:,}" for count in SUBSET.counts)
        origin = f"the subset that comes with normkit: {counts} of the images"
        dataset = read(SUBSET, SUBSET_FOLDER, origin, subset=True)
    return lit(dataset, spec, _places(dataset)) if spec.base else dataset


def _places(dataset: Dataset) -> tuple[np.ndarray, ...]:
    """Return the places of the training and of the test images in the official files."""
    if dataset.subset:
        return read_places(SUBSET_PLACES, SUBSET_FOLDER)
    return np.arange(len(dataset.train)), np.arange(len(dataset.test))


def status() -> list[Status]:
    """Report which data sets are on this machine, without network access.

    Reads and checks whatever it finds, which takes a second or two for each.

    >>> [s.name for s in status()]
    ['fashion-mnist', 'fashion-mnist-lit', 'cifar-10', 'cifar-100']
    """
    status = {spec.name: _status(spec, None) for spec in SPECS.values() if not spec.base}
    return [_of(spec, status[owner_of(spec.name).name]) for spec in SPECS.values()]


def is_here(name: str) -> bool:
    """Return True if the full data set is on this machine; needs no network.

    >>> is_here("cifar-100") in (True, False)
    True
    """
    return _status(owner_of(name), None).available


def _of(spec: Spec, owner: Status) -> Status:
    """Return the status of a data set by that of the owner of its files."""
    return owner._replace(name=spec.name, size=0) if spec.base else owner


def _status(spec: Spec, location: _Found | None) -> Status:
    try:
        location = location or _locate(spec, None, offline=True, progress=False)
    except DataError as error:
        if not isinstance(error, _NowhereError):
            return Status(spec.name, False, str(error), 0)
        note = "not here"
        if spec.name == SUBSET.name:
            note += f"; {sum(SUBSET.counts):,} of its images come with normkit"
        return Status(spec.name, False, note, 0)
    size = sum(path.stat().st_size for _, path in find(spec, location.folder))
    return Status(spec.name, True, str(location.folder), size)


def fetch(name: str, *, progress: bool = True) -> Status:
    """Download a data set unless it is on this machine already.

    Args:
        name: as :func:`load` takes it; of a computed data set, those that it is computed from.
        progress: show on standard error what is being fetched.

    Raises:
        OptionError: no such data set.
        DataError: no source has it; all are listed, each with its reason.
    """
    spec = spec_of(name)
    owner = owner_of(name)
    return _of(spec, _status(owner, _locate(owner, None, offline=False, progress=progress)))
