"""Sources in their order, damage, and what is said when nothing works."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch

from normkit.errors import DataError, OptionError
from normkit.lab import data
from normkit.lab.data import catalogue, loading

IMAGES = "train-images-idx3-ubyte.gz"


def no_subset(**options: Any) -> data.Dataset:
    return data.load("fashion-mnist", allow_subset=False, offline=True, **options)


def test_named_folder_comes_first(small: Any, sealed: Path, tmp_path: Path) -> None:
    small.write(sealed / "fashion-mnist")
    folder = small.write(tmp_path / "mine")
    loaded = no_subset(folder=folder)
    assert loaded.origin == "a folder named by the folder argument"
    assert (len(loaded.train), len(loaded.test), loaded.subset) == (20, 10, False)
    assert loaded.train.images.shape == (20, 1, 28, 28)
    assert loaded.train.labels.tolist() == [i % 10 for i in range(20)]
    assert loaded.test.mean == loaded.train.mean == (0.2860,)
    # A folder with none of the files is passed over.
    (tmp_path / "empty").mkdir()
    assert no_subset(folder=tmp_path / "empty").origin == "the cache"


@pytest.mark.parametrize("inside", ["", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_folders_as_other_tools_leave_them(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, packed: bool
) -> None:
    folder = small.write(tmp_path / "mine" / inside)
    if not packed:
        for path in list(folder.iterdir()):
            (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    monkeypatch.setenv("NORMKIT_DATA", str(tmp_path / "mine"))
    assert no_subset().origin == "a folder named by $NORMKIT_DATA"


def test_files_compressed_otherwise_are_the_same_files(small: Any, tmp_path: Path) -> None:
    folder = small.write(tmp_path / "mine")
    again = gzip.compress(gzip.decompress(small.files[IMAGES]), 1, mtime=5)
    assert again != small.files[IMAGES]
    (folder / IMAGES).write_bytes(again)
    assert len(no_subset(folder=folder).train) == 20


def damage(path: Path) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[-1] ^= 1
    path.write_bytes(gzip.compress(raw))


def test_damage_in_a_named_folder_is_an_error(small: Any, sealed: Path, tmp_path: Path) -> None:
    small.write(sealed / "fashion-mnist")
    folder = small.write(tmp_path / "mine")
    damage(folder / IMAGES)
    with pytest.raises(DataError, match="with SHA-256") as error:
        data.load("fashion-mnist", folder=folder)
    assert str(folder / IMAGES) in str(error.value)
    whole = small.files[IMAGES]
    (folder / IMAGES).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="complete, readable file"):
        data.load("fashion-mnist", folder=folder)


def test_missing_folder_raises(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="the folder argument to name a folder"):
        data.load("fashion-mnist", folder=tmp_path / "typo")
    monkeypatch.setenv("NORMKIT_DATA", str(tmp_path / "typo"))
    with pytest.raises(DataError, match=r"\$NORMKIT_DATA to name a folder"):
        data.load("fashion-mnist")


def test_incomplete_folder_is_skipped(small: Any, tmp_path: Path) -> None:
    folder = small.write(tmp_path / "mine")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"no t10k-labels-idx1-ubyte\.gz in"):
        no_subset(folder=folder)


def test_damage_in_the_cache_is_a_reason_to_go_on(small: Any, sealed: Path) -> None:
    folder = small.write(sealed / "fashion-mnist")
    damage(folder / IMAGES)
    small.write(small.spec.folder)
    assert no_subset().origin == "the system's package dataset-fashion-mnist"
    damage(small.spec.folder / IMAGES)
    with pytest.raises(DataError) as error:
        no_subset()
    assert str(error.value).count("damaged: ") == 2


@pytest.mark.usefixtures("no_commands")
def test_offline_changes_nothing_and_lists_all_sources(
    small: Any, sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.setenv("NORMKIT_DATA", str(tmp_path / "b"))
    with pytest.raises(DataError) as error:
        no_subset(folder=tmp_path / "a")
    lines = [line for line in str(error.value).splitlines() if line.startswith("  - ")]
    assert [line.removeprefix("  - ").split(": ")[0] for line in lines] == [
        "the folder argument",
        "$NORMKIT_DATA",
        "the cache",
        "the installed package dataset-fashion-mnist",
        "the system's package dataset-fashion-mnist",
        "http://127.0.0.1:1/",
    ]
    assert sum("not asked, offline" in line for line in lines) == 2
    assert "NORMKIT_DATA" in str(error.value).splitlines()[-1]
    # Nothing was written: not even the cache's folder.
    assert not sealed.exists()


@pytest.mark.usefixtures("no_commands")
@pytest.mark.parametrize("name", ["cifar-10", "cifar-100"])
def test_cifar_has_no_subset(name: str) -> None:
    with pytest.raises(DataError, match=f"{name}-binary.tar.gz or {name}-python.tar.gz"):
        data.load(name, offline=True)


def test_unknown_name() -> None:
    with pytest.raises(
        OptionError, match="fashion-mnist-lit, cifar-10, cifar-100; received 'mnist'"
    ):
        data.load("mnist")
    with pytest.raises(OptionError):
        data.fetch("mnist")


@pytest.mark.usefixtures("no_commands", "small")
def test_subset_is_used_and_reported() -> None:
    loaded = data.load("fashion-mnist", offline=True)
    assert loaded.subset
    assert loaded.origin == "the subset that comes with normkit: 5,000 + 1,000 of the images"
    assert loaded.train.labels.bincount().tolist() == [500] * 10
    assert loaded.test.labels.bincount().tolist() == [100] * 10
    assert loaded.train.images.shape == (5000, 1, 28, 28)
    # Real images: their moments are near those of the whole set, which standardise them.
    mean, std = loaded.train.moments()
    assert mean[0] == pytest.approx(0.2860, abs=0.005)
    assert std[0] == pytest.approx(0.3530, abs=0.005)
    assert loaded.train.mean == (0.2860,)

    # No image is in both halves.
    def keys(images: torch.Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    assert not keys(loaded.train.images) & keys(loaded.test.images)


def test_subset_is_small_and_licensed() -> None:
    files = list(loading.SUBSET_FOLDER.iterdir())
    assert sum(path.stat().st_size for path in files) < 3_000_000
    assert "Zalando" in (loading.SUBSET_FOLDER / "LICENSE").read_text(encoding="utf-8")
    assert len(files) == 7


def test_damaged_subset_is_never_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: Any
) -> None:
    monkeypatch.setattr(loading, "SUBSET_FOLDER", small.write(tmp_path / "subset"))
    with pytest.raises(DataError, match="to hold"):
        data.load("fashion-mnist", offline=True)


@pytest.mark.usefixtures("no_commands")
def test_status(small: Any, sealed: Path) -> None:
    absent = data.status()[0]
    assert absent == ("fashion-mnist", False, absent.where, 0)
    assert "6,000 of its images come with normkit" in absent.where
    folder = small.write(sealed / "fashion-mnist")
    size = sum(len(packed) for packed in small.files.values())
    assert data.status() == [
        ("fashion-mnist", True, str(folder), size),
        ("fashion-mnist-lit", True, str(folder), 0),
        ("cifar-10", False, "not here", 0),
        ("cifar-100", False, "not here", 0),
    ]
    damage(folder / IMAGES)
    assert not data.status()[0].available


def test_status_tells_of_a_wrong_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMKIT_DATA", str(tmp_path / "typo"))
    for line in data.status():
        assert not line.available and "to name a folder" in line.where


@pytest.mark.usefixtures("no_commands")
def test_fetch_of_what_is_here_touches_nothing(small: Any, sealed: Path) -> None:
    folder = small.write(sealed / "fashion-mnist")
    assert data.fetch("fashion-mnist")[:3] == ("fashion-mnist", True, str(folder))
    assert data.fetch("fashion-mnist-lit") == ("fashion-mnist-lit", True, str(folder), 0)
    assert data.is_here("fashion-mnist-lit")


def test_catalogue_names_only_official_places() -> None:
    hosts = {m.split("/")[2] for spec in catalogue.SPECS.values() for m in spec.mirrors}
    assert hosts == {
        "fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "raw.githubusercontent.com",
        "www.cs.toronto.edu",
    }
