"""Corruptions of test images: ranges, severities, order, and the conditions that use them."""

from __future__ import annotations

import itertools

import pytest
import torch

from normkit.errors import OptionError
from normkit.lab.conditions import check_condition
from normkit.lab.data import Split
from normkit.lab.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted

KINDS = range(1, len(CORRUPTIONS) + 1)


@pytest.fixture(scope="module")
def split() -> Split:
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 255, 28).expand(12, 1, 28, 28)
    speckle = 40 * torch.randn(12, 1, 28, 28, generator=generator)
    pixels = (ramp + speckle).clamp(0, 255).to(torch.uint8)
    return Split(pixels, torch.arange(12) % 10, mean=(0.5,), std=(0.3,))


@pytest.mark.parametrize("kind", KINDS)
def test_severity_takes_images_further_away(split: Split, kind: int) -> None:
    before = split.images.clone()
    away = [
        (corrupted(split, kind, severity).images.float() - split.images.float()).abs().mean()
        for severity in range(1, SEVERITIES + 1)
    ]
    assert torch.equal(split.images, before)
    assert all(one < other for one, other in itertools.pairwise(away))
    changed = corrupted(split, kind, 3)
    assert changed.images.dtype == torch.uint8
    assert changed.mean == split.mean
    assert torch.equal(changed.labels, split.labels)
    assert torch.equal(changed.images, corrupted(split, kind, 3).images)


def test_blur_keeps_the_mean_and_contrast_the_order(split: Split) -> None:
    blurred = corrupted(split, 2, 3).images.float()
    assert blurred.mean() == pytest.approx(split.images.float().mean(), abs=2)
    flat = Split(torch.full((1, 1, 8, 8), 7, dtype=torch.uint8), torch.tensor([0]))
    for kind in (2, 3, 5):
        assert torch.equal(corrupted(flat, kind, 5).images, flat.images)


@pytest.mark.parametrize("numbers", [(0, 3), (len(CORRUPTIONS) + 1, 3), (1, 6), (1, 0)])
def test_unknown_corruptions_are_refused(split: Split, numbers: tuple[int, int]) -> None:
    with pytest.raises(OptionError):
        corrupted(split, *numbers)
    with pytest.raises(OptionError):
        check_condition(("corrupted", *numbers), train_images=100, test_images=100)


def test_conditions_are_checked() -> None:
    check_condition(("corrupted", 1, 3), train_images=100, test_images=100)
    check_condition(("corrupted-sorted", 1, 3, 50), train_images=100, test_images=100)
    with pytest.raises(OptionError, match="at least two images"):
        check_condition(("corrupted-batch", 1, 3, 99), train_images=100, test_images=100)


def test_kinds_keep_their_numbers_and_c26_its_five() -> None:
    from normkit.lab.claims.c26 import KINDS as OF_C26

    # Records of runs hold the numbers: new kinds come last.
    first = {"noise": 1, "blur": 2, "contrast": 3, "fog": 4, "pixelation": 5}
    assert dict(zip(CORRUPTIONS, itertools.count(1), strict=False)) == {
        **first, "impulse": 6, "brightness": 7, "inversion": 8,
    }  # fmt: skip
    assert first == OF_C26


def test_impulse_brightness_and_inversion_by_hand(split: Split) -> None:
    flat = Split(torch.full((40, 1, 20, 20), 100, dtype=torch.uint8), torch.zeros(40).long())
    impulse = corrupted(flat, 6, 5).images
    assert impulse.unique().tolist() == [0, 100, 255]
    assert (impulse != 100).float().mean() == pytest.approx(0.27, abs=0.01)
    assert (impulse == 0).float().mean() == pytest.approx(0.135, abs=0.01)
    assert corrupted(flat, 7, 3).images.unique().tolist() == [round(100 + 255 * 0.3)]
    assert torch.equal(corrupted(split, 8, 5).images, 255 - split.images)
