"""Batches: every image once, in an order that only (seed, epoch) decide, standardised."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from normkit.errors import OptionError, TypeMismatchError
from normkit.lab.data import Split, batches


def numbered(count: int, channels: int = 1, side: int = 4) -> Split:
    # The label is the image's number, and so is its first pixel.
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    return Split(images, torch.arange(count), (0.5,) * channels, (0.25,) * channels)


def labels_of(split: Split, batch_size: int = 7, **options: object) -> list[int]:
    loaded = batches(split, batch_size, **options)  # type: ignore[arg-type]
    return [label for _, labels in loaded for label in labels.tolist()]


def test_every_image_once_with_its_label() -> None:
    split = numbered(100)
    seen = []
    for images, labels in batches(split, 16, seed=0):
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        first = ((images[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().long()
        assert torch.equal(first, labels)
        seen += labels.tolist()
    assert sorted(seen) == list(range(100))
    assert seen != list(range(100))


def test_sizes_and_drop_last() -> None:
    split = numbered(10)
    assert [len(y) for _, y in batches(split, 4, seed=0)] == [4, 4, 2]
    assert [len(y) for _, y in batches(split, 4, seed=0, drop_last=True)] == [4, 4]
    assert [len(y) for _, y in batches(split, 11, seed=0, drop_last=True)] == []
    assert list(batches(split.take(0), 4, seed=0)) == []


def test_order_depends_on_seed_and_epoch_only() -> None:
    split = numbered(50)
    torch.manual_seed(0)
    one = labels_of(split, seed=3, epoch=1)
    torch.manual_seed(1)
    assert labels_of(split, seed=3, epoch=1) == one
    # Neither the batch size nor the image size has a part in it.
    assert labels_of(split, 3, seed=3, epoch=1, size=8) == one
    others = {(s, e): tuple(labels_of(split, seed=s, epoch=e)) for s in range(4) for e in range(4)}
    assert len(set(others.values())) == 16
    assert labels_of(split, seed=3, epoch=1, shuffle=False) == list(range(50))


def test_global_generator_is_left_alone() -> None:
    split = numbered(20)
    state = torch.get_rng_state()
    list(batches(split, 4, seed=0, size=8))
    assert torch.equal(torch.get_rng_state(), state)


def test_standardised_exactly() -> None:
    split = numbered(9, channels=3)
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    ((images, _),) = batches(split, 9, seed=0, shuffle=False, mean=mean, std=std)
    pixels = split.images.double() / 255
    expected = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(images.double(), expected, atol=2e-6, rtol=0)


def test_own_moments_give_zero_mean_and_unit_deviation() -> None:
    split = numbered(64, side=8)
    mean, std = split.moments()
    ((images, _),) = batches(split, 64, seed=0, mean=mean, std=std)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_padding_is_black_all_around() -> None:
    split = numbered(2, side=3)
    ((images, _),) = batches(split, 2, seed=0, shuffle=False, size=6, fit="pad")
    black = (0 - 0.5) / 0.25
    assert images.shape == (2, 1, 6, 6)
    inner = images[:, :, 1:4, 1:4]
    torch.testing.assert_close(inner, (split.images / 255 - 0.5) / 0.25, atol=1e-6, rtol=0)
    assert torch.equal(images == black, F.pad(inner == black, (1, 2, 1, 2), value=True))


@pytest.mark.parametrize(("size", "antialias"), [(9, False), (2, True)])
def test_resizing_is_bilinear(size: int, antialias: bool) -> None:
    split = numbered(3, channels=3)
    ((images, _),) = batches(split, 3, seed=0, shuffle=False, size=size)
    pixels = F.interpolate(split.images / 255, (size, size), mode="bilinear", antialias=antialias)
    torch.testing.assert_close(images, (pixels - 0.5) / 0.25, atol=1e-5, rtol=0)


def test_channels_last() -> None:
    for options in ({}, {"size": 8}, {"size": 8, "fit": "pad"}, {"shuffle": False}):
        kept = {"seed": 0, **options}
        plain, _ = next(batches(numbered_once, 4, **kept))  # type: ignore[arg-type]
        last, _ = next(batches(numbered_once, 4, channels_last=True, **kept))  # type: ignore[arg-type]
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert plain.is_contiguous()
        assert torch.equal(plain, last)


numbered_once = numbered(12, channels=3)


def test_batches_are_copies() -> None:
    split = numbered(8)
    before = split.images.clone()
    for shuffle in (True, False):
        for images, labels in batches(split, 4, seed=0, shuffle=shuffle):
            images.zero_()
            labels.zero_()
    assert torch.equal(split.images, before)
    assert torch.equal(split.labels, torch.arange(8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"seed": -1}, "seed of at least 0"),
        ({"epoch": -1}, "epoch of at least 0"),
        ({"size": 0}, "size of at least 1"),
        ({"size": 2, "fit": "pad"}, "a size of at least 4 to pad 4×4 images"),
        ({"fit": "crop"}, "fit to be one of resize, pad"),
        ({"mean": (0.1, 0.2)}, "each of 1 channels"),
        ({"std": (0.0,)}, "above 0"),
    ],
)
def test_wrong_options_are_refused_at_once(options: dict[str, object], message: str) -> None:
    # Not at the first batch: nothing is taken from the iterator here.
    with pytest.raises(OptionError, match=message):
        batches(numbered(4), **{"batch_size": 2, "seed": 0, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"batch_size": 2.0}, {"seed": True}, {"epoch": "1"}])
def test_wrong_types_are_refused_at_once(options: dict[str, object]) -> None:
    with pytest.raises(TypeMismatchError, match="to be an int"):
        batches(numbered(4), **{"batch_size": 2, "seed": 0, **options})  # type: ignore[arg-type]


def test_no_moments_no_batches() -> None:
    split = Split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2).long())
    with pytest.raises(OptionError, match="a split with mean"):
        batches(split, 1, seed=0)
