"""The tool that drew the images that come with the package."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from normkit.lab.data import Dataset, Split, idx, make_subset
from normkit.lab.data.make_subset import choose


def test_choose_is_balanced_ordered_and_repeatable() -> None:
    labels = (torch.arange(300) % 3).tolist()
    chosen = choose(labels, 10, seed=1)
    assert chosen == sorted(set(chosen))
    assert torch.tensor([labels[i] for i in chosen]).bincount().tolist() == [10, 10, 10]
    assert choose(labels, 10, seed=1) == chosen
    assert choose(labels, 10, seed=2) != chosen
    # These very numbers, on every machine and every Python.
    assert choose([0] * 8, 3, seed=1) == [0, 3, 5]


def test_files_are_the_same_bytes_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_subset, "PER_CLASS", (2, 1))
    images = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8)
    split = Split(images, torch.arange(40) % 10)
    dataset = Dataset("x", "X", "here", "none", tuple("abcdefghij"), split, split)
    first = make_subset.make_subset(dataset, tmp_path / "a")
    assert make_subset.make_subset(dataset, tmp_path / "b") == first
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert first["train-labels-idx1-ubyte"][1] == 8 + 20
    chosen = gzip.decompress((tmp_path / "a" / "train-chosen-idx1-ubyte.gz").read_bytes())
    picked = choose(split.labels.tolist(), 2, make_subset.SEED)
    assert idx.decode(chosen, "chosen").nonzero().flatten().tolist() == picked
    assert first["t10k-images-idx3-ubyte"][1] == 16 + 10 * 784
