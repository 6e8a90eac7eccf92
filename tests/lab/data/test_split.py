"""Splits and data sets: what they accept, what they choose."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from normkit.errors import DataError, OptionError, ShapeError, TypeMismatchError
from normkit.lab.data import Dataset, Split


def split_of(labels: torch.Tensor) -> Split:
    count = len(labels)
    # Each image is told apart by its first two pixels.
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count) % 256
    images[:, 0, 0, 1] = torch.arange(count) // 256
    return Split(images, labels, (0.5,), (0.25,))


def ids(split: Split) -> list[int]:
    pixels = split.images.long()
    return (pixels[:, 0, 0, 0] + 256 * pixels[:, 0, 0, 1]).tolist()


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (torch.zeros(2, 1, 2, 2), torch.zeros(2).long(), TypeMismatchError, "torch.uint8"),
        (torch.zeros(2, 1, 2, 2).byte(), torch.zeros(2), TypeMismatchError, "torch.int64"),
        (torch.zeros(2, 1, 2, 2).byte(), torch.zeros(2).int(), TypeMismatchError, "torch.int64"),
        ([[1]], torch.zeros(2).long(), TypeMismatchError, "list"),
        (torch.zeros(2, 2, 2).byte(), torch.zeros(2).long(), ShapeError, r"\(N, C, H, W\)"),
        (torch.zeros(2, 1, 2, 2).byte(), torch.zeros(2, 1).long(), ShapeError, r"\(N,\)"),
        (torch.zeros(2, 1, 2, 2).byte(), torch.zeros(3).long(), ShapeError, "2 images and 3"),
        (torch.zeros(2, 1, 2, 2).byte(), torch.tensor([0, -1]), DataError, "labels from 0"),
    ],
)
def test_wrong_tensors_are_refused(
    images: torch.Tensor, labels: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Split(images, labels)


def test_labels_beyond_the_classes_are_refused() -> None:
    good, bad = split_of(torch.tensor([0, 1])), split_of(torch.tensor([0, 2]))
    Dataset("x", "X", "here", "none", ("a", "b"), good, good)
    with pytest.raises(DataError, match=r"labels 0 to 1 in .*; received 2 in test"):
        Dataset("x", "X", "here", "none", ("a", "b"), good, bad)


def test_splits_of_different_sizes_are_refused() -> None:
    other = Split(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1).long())
    with pytest.raises(DataError, match="one shape"):
        Dataset("x", "X", "here", "none", ("a",), split_of(torch.zeros(1).long()), other)


def test_take_first() -> None:
    split = split_of(torch.arange(10) % 3)
    assert ids(split.take(4)) == [0, 1, 2, 3]
    assert split.take(4).mean == (0.5,)
    assert len(split.take(0)) == 0


@pytest.mark.parametrize("n", [10, 30, 97, 300])
def test_take_random_is_balanced(n: int) -> None:
    split = split_of(torch.arange(300) % 10)
    taken = split.take(n, seed=1)
    counts = taken.labels.bincount(minlength=10)
    assert counts.sum() == n
    assert counts.max() - counts.min() <= 1
    assert len(set(ids(taken))) == n
    # Labels still belong to their images.
    assert [i % 10 for i in ids(taken)] == taken.labels.tolist()


def test_take_random_goes_on_when_a_class_runs_out() -> None:
    split = split_of(torch.tensor([0] * 20 + [1] * 3))
    assert split.take(10, seed=0).labels.bincount().tolist() == [7, 3]


def test_take_random_depends_on_the_seed_only() -> None:
    split = split_of(torch.arange(100) % 10)
    torch.manual_seed(0)
    first = ids(split.take(20, seed=5))
    state = torch.get_rng_state()
    torch.manual_seed(9)
    assert ids(split.take(20, seed=5)) == first
    assert ids(split.take(20, seed=6)) != first
    assert ids(split.take(50, seed=5))[:20] == first
    torch.manual_seed(0)
    split.take(20, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("n", "seed"), [(2.0, None), (True, None), ("3", 0), (3, "0"), (3, 1.5)])
def test_take_takes_whole_numbers(n: Any, seed: Any) -> None:
    with pytest.raises(TypeMismatchError, match="to be an int"):
        split_of(torch.arange(10)).take(n, seed=seed)


@pytest.mark.parametrize("n", [-1, 11])
def test_take_out_of_range(n: int) -> None:
    with pytest.raises(OptionError, match="10 images"):
        split_of(torch.arange(10)).take(n)


def test_moments_match_a_plain_computation() -> None:
    images = torch.randint(0, 256, (50, 3, 7, 5), dtype=torch.uint8)
    split = Split(images, torch.zeros(50).long())
    wide = images.double() / 255
    mean, std = split.moments()
    assert mean == pytest.approx(wide.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(wide.std((0, 2, 3), unbiased=False).tolist(), rel=1e-12)
    with pytest.raises(DataError, match="at least one image"):
        split.take(0).moments()
