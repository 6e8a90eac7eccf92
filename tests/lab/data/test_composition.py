"""Batches composed by label, of the real images."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from normkit.errors import OptionError
from normkit.lab import data
from normkit.lab.data.composition import Composition, compose

PAIR = Composition(group=32, labels=2)


@pytest.fixture(scope="module")
def split() -> data.Split:
    """1,280 images, 128 of each label: eight shares of 16, so that all comes out even."""
    return data.load("fashion-mnist", offline=True).train.take(1280, seed=0)


def shares(labels: torch.Tensor) -> list[int]:
    return sorted(Counter(labels.tolist()).values())


@pytest.mark.parametrize(("group", "labels"), [(32, 1), (32, 2), (32, 4), (20, 10)])
def test_each_group_has_its_labels_in_equal_shares(
    split: data.Split, group: int, labels: int
) -> None:
    composed = compose(split, Composition(group, labels), 128, seed=0, epoch=0)
    assert len(composed) == len(split)
    groups = composed.labels.split(group)
    assert all(shares(each) == [group // labels] * labels for each in groups)
    # Not the same ones all the time.
    assert labels == 10 or len({tuple(sorted(set(each.tolist()))) for each in groups}) > 5


def test_each_image_comes_once_and_keeps_its_label(split: data.Split) -> None:
    composed = compose(split, PAIR, 128, seed=0, epoch=0)

    def images(of: data.Split) -> list[bytes]:
        return sorted(
            image.numpy().tobytes() + bytes([label])
            for image, label in zip(of.images, of.labels.tolist(), strict=True)
        )

    assert images(composed) == images(split)
    assert composed.mean == split.mean


def test_what_does_not_come_out_even_is_composed_as_well(split: data.Split) -> None:
    part = split.take(1000)  # 100 of each label and six shares; 31 groups and eight images
    composed = compose(part, PAIR, 128, seed=0, epoch=0)
    assert len(composed) == 1000
    assert all(shares(each) == [16, 16] for each in composed.labels[:992].split(32))
    assert len(set(composed.labels[992:].tolist())) <= 2
    distinct = len(torch.unique(composed.images.flatten(1), dim=0))
    assert distinct >= 0.9 * len(torch.unique(part.images.flatten(1), dim=0))


def test_order_is_that_of_seed_and_epoch_alone(split: data.Split) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = compose(split, PAIR, 128, seed=1, epoch=0).labels
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(compose(split, PAIR, 128, seed=1, epoch=0).labels, first)
    for seed, epoch in ((1, 1), (0, 1), (2, 0)):
        assert not torch.equal(compose(split, PAIR, 128, seed=seed, epoch=epoch).labels, first)


def test_mixed_batches_hold_the_same_images_in_other_places(split: data.Split) -> None:
    mixed = Composition(group=32, labels=2, mixed=True)
    plain = compose(split, PAIR, 128, seed=0, epoch=0).labels.split(128)
    other = compose(split, mixed, 128, seed=0, epoch=0).labels.split(128)
    assert all(
        torch.equal(a.sort().values, b.sort().values) for a, b in zip(plain, other, strict=True)
    )
    groups = [group for batch in other for group in batch.split(32)]
    assert sum(len(set(group.tolist())) > 2 for group in groups) > len(groups) / 2


@pytest.mark.parametrize("wrong", [(32, 3), (0, 1), (32, 0), (2, 4)])
def test_groups_without_equal_shares_are_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match=r"labels to divide group.*Fix"):
        Composition(*wrong)


def test_too_few_images_are_refused(split: data.Split) -> None:
    with pytest.raises(
        OptionError, match=r"with at least 16 images each.*10 labels, one of them with 10"
    ):
        compose(split.take(100), PAIR, 32, seed=0, epoch=0)
    with pytest.raises(OptionError, match="11 labels"):
        compose(split, Composition(group=22, labels=11), 22, seed=0, epoch=0)
