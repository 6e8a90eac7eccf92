"""Images in another domain."""

from __future__ import annotations

import pytest
import torch

from normkit.errors import OptionError
from normkit.lab import data
from normkit.lab.data.domains import DOMAINS, check_domains, in_domain


@pytest.fixture(scope="module")
def split() -> data.Split:
    return data.load("fashion-mnist", offline=True).test.take(100, seed=0)


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_first_domain_is_the_images_and_the_second_is_not(split: data.Split, name: str) -> None:
    same, other = (in_domain(split, name, domain) for domain in (0, 1))
    assert torch.equal(same.images, split.images)
    assert other.images.dtype == torch.uint8
    assert other.images.float().mean() > split.images.float().mean() + 50
    for each in (same, other):
        assert torch.equal(each.labels, split.labels)
        # Standardised as the network's other domain: else batches would not differ.
        assert (each.mean, each.std) == (split.mean, split.std)


def test_negatives_of_negatives_are_the_images(split: data.Split) -> None:
    twice = in_domain(in_domain(split, "negatives", 1), "negatives", 1)
    assert torch.equal(twice.images, split.images)


def test_unknown_domains_are_refused(split: data.Split) -> None:
    for name, domain in (("moon", 0), ("faded", 2), ("faded", -1)):
        with pytest.raises(OptionError, match="Fix"):
            in_domain(split, name, domain)
    with pytest.raises(OptionError, match=r"one of .*negatives.*'moon'"):
        check_domains("moon")
