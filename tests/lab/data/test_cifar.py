"""CIFAR archives: both forms give the same, and nothing in them is run or written."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from normkit.errors import DataError
from normkit.lab import data
from normkit.lab.data import catalogue, cifar

Archive = Callable[[dict[str, bytes]], bytes]
SHAPE = (3, 32, 32)


class _Python2(pickle._Pickler):
    """Pickles bytes as Python 2 did its strings, which is how CIFAR's files are."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value: bytes | str) -> None:
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)

    dispatch[bytes] = save_string
    dispatch[str] = save_string


def python2_pickle(value: object) -> bytes:
    buffer = io.BytesIO()
    _Python2(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def random_batch(count: int, classes: int, seed: int) -> tuple[np.ndarray, list[int]]:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
    return pixels, generator.integers(0, classes, count).tolist()


def binary(pixels: np.ndarray, labels: list[int], coarse: bool) -> bytes:
    columns = [np.array(labels, np.uint8)[:, None], pixels]
    if coarse:
        columns.insert(0, np.full((len(labels), 1), 17, np.uint8))
    return np.concatenate(columns, axis=1).tobytes()


@pytest.fixture(params=["cifar-10", "cifar-100"])
def both_forms(
    request: pytest.FixtureRequest, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, dict[str, bytes], torch.Tensor, list[int]]:
    """Small archives of both forms with the same images, known to the catalogue."""
    spec = catalogue.SPECS[request.param]
    fine = request.param == "cifar-100"
    forms: dict[str, dict[str, bytes]] = {f.name: {} for f in spec.files}
    order = []
    for i, names in enumerate(
        zip(
            (*spec.files[0].train, *spec.files[0].test),
            (*spec.files[1].train, *spec.files[1].test),
            strict=True,
        )
    ):
        pixels, labels = random_batch(4, len(spec.classes), i)
        order.append((pixels, labels))
        forms[spec.files[0].name][names[0]] = binary(pixels, labels, fine)
        batch = {"data": pixels, "fine_labels" if fine else "labels": labels, "filenames": ["x"]}
        forms[spec.files[1].name][names[1]] = python2_pickle(batch)
    archives = {
        # Members that nobody asked for lie about, and in another order than the catalogue's.
        name: archive({"../../evil": b"x", **dict(reversed(members.items())), "readme.html": b"y"})
        for name, members in forms.items()
    }
    files = tuple(
        dataclasses.replace(
            f, sha256=hashlib.sha256(archives[f.name]).hexdigest(), size=len(archives[f.name])
        )
        for f in spec.files
    )
    count = 4 * len(spec.files[0].train)
    changed = dataclasses.replace(spec, files=files, counts=(count, 4))
    monkeypatch.setitem(catalogue.SPECS, spec.name, changed)
    images = torch.from_numpy(np.concatenate([p for p, _ in order[:-1]])).reshape(-1, *SHAPE)
    return spec.name, archives, images, [label for _, ls in order[:-1] for label in ls]


@pytest.mark.parametrize("form", ["binary", "python"])
def test_both_forms_are_read(
    both_forms: tuple[str, dict[str, bytes], torch.Tensor, list[int]], form: str, tmp_path: Path
) -> None:
    name, archives, images, labels = both_forms
    folder = tmp_path / "mine"
    folder.mkdir()
    file = f"{name}-{form}.tar.gz"
    (folder / file).write_bytes(archives[file])
    before = sorted(tmp_path.rglob("*"))
    loaded = data.load(name, folder=folder, offline=True)
    assert torch.equal(loaded.train.images, images)
    assert loaded.train.labels.tolist() == labels
    assert loaded.test.images.shape == (4, *SHAPE)
    assert not loaded.subset
    assert len(loaded.train.mean or ()) == 3
    # Reading wrote nothing, inside the folder or above it.
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "evil").exists()


def test_wrong_archive_is_refused(
    both_forms: tuple[str, dict[str, bytes], torch.Tensor, list[int]], tmp_path: Path
) -> None:
    name, archives, _, _ = both_forms
    file = f"{name}-binary.tar.gz"
    changed = bytearray(archives[file])
    changed[-1] ^= 1
    (tmp_path / file).write_bytes(changed)
    with pytest.raises(DataError, match="SHA-256"):
        data.load(name, folder=tmp_path, offline=True)
    (tmp_path / file).write_bytes(archives[file][:-1])
    with pytest.raises(DataError, match=r"to hold .* bytes"):
        data.load(name, folder=tmp_path, offline=True)


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_is_not_run(archive: Archive, tmp_path: Path, protocol: int) -> None:
    made = tmp_path / "made"
    bad = archive({"b": pickle.dumps({"data": _Evil(made), "labels": []}, protocol)})
    with pytest.raises(DataError, match=r"asks for \w+.mkdir"):
        cifar.read(bad, ("b",), "x.tar.gz", SHAPE)
    assert not made.exists()
    # The same bytes do run where nothing stops them: the test can fail.
    pickle.loads(pickle.dumps(_Evil(made), protocol))
    assert made.exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "builtins.getattr", "os.system", "numpy.load", "torch.load"]
)
def test_only_arrays_are_known(archive: Archive, name: str) -> None:
    module, attribute = name.rsplit(".", 1)
    text = f"c{module}\n{attribute}\n.".encode()
    with pytest.raises(DataError, match=f"asks for {name}"):
        cifar.read(archive({"b": text}), ("b",), "x.tar.gz", SHAPE)


GOOD = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}


@pytest.mark.parametrize(
    "value",
    [
        {"data": GOOD["data"]},
        {"labels": [0, 1]},
        [1, 2],
        {**GOOD, "labels": [0]},
        {**GOOD, "labels": [0.5, 1.5]},
        {**GOOD, "data": np.zeros((2, 3072))},
        {**GOOD, "data": np.zeros((2, 3071), np.uint8)},
        {**GOOD, "data": np.zeros((2, 3, 1024), np.uint8)},
        {**GOOD, "data": [[1, 2], [3, 4]]},
        {**GOOD, "labels": [[0], [1, 2]]},
    ],
)
def test_pickles_of_other_things_are_refused(archive: Archive, value: object) -> None:
    with pytest.raises(DataError, match=r" to (hold|be)"):
        cifar.read(archive({"b": python2_pickle(value)}), ("b",), "x.tar.gz", SHAPE)
    images, labels = cifar.read(archive({"b": python2_pickle(GOOD)}), ("b",), "x", SHAPE)
    assert images.shape == (2, *SHAPE) and labels.tolist() == [0, 1]


def test_new_pickles_are_read_too(archive: Archive) -> None:
    images, _ = cifar.read(archive({"b": pickle.dumps(GOOD, 4)}), ("b",), "x", SHAPE)
    assert images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "no a.bin"),
        ({"b.bin": b"x"}, "no a.bin"),
        ({"../a.bin": bytes(3073)}, "no a.bin"),
        ({"a.bin": bytes(3072)}, "1 label bytes and 3072 pixels; received 3072 bytes"),
        ({"a.bin": b""}, "received 0 bytes"),
    ],
)
def test_wrong_members_are_refused(
    archive: Archive, members: dict[str, bytes], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        cifar.read(archive(members), ("a.bin",), "x.tar.gz", SHAPE)


def test_no_archive_at_all(archive: Archive) -> None:
    whole = archive({"a.bin": os.urandom(3073)})
    for bad in (b"", b"nothing", whole[: len(whole) // 2], whole[:20]):
        with pytest.raises(DataError, match=r"complete \.tar\.gz archive"):
            cifar.read(bad, ("a.bin",), "x.tar.gz", SHAPE)


def test_catalogue_has_the_known_classes() -> None:
    hundred = catalogue.SPECS["cifar-100"].classes
    assert len(catalogue.SPECS["cifar-10"].classes) == 10
    assert len(set(hundred)) == 100
    # CIFAR-100's fine labels are in alphabetical order.
    assert list(hundred) == sorted(hundred)
