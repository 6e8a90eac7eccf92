"""Move images to another domain: pairs of deterministic changes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from normkit.errors import OptionError, message
from normkit.lab.checks import choice
from normkit.lab.data.split import Split

__all__ = ["DOMAINS", "check_domains", "in_domain"]


def _same(pixels: Tensor) -> Tensor:
    return pixels


def _negative(pixels: Tensor) -> Tensor:
    return 255 - pixels


def _faded(pixels: Tensor) -> Tensor:
    # A third of the contrast, on a light ground: 160 to 245.
    return 160 + pixels // 3


DOMAINS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "negatives": (_same, _negative),
    "faded": (_same, _faded),
}
"""Changes of the uint8 pixels by domain, under the name that a run's description uses."""


def check_domains(name: str) -> None:
    """Raise if there are no domains of this name.

    Raises:
        OptionError: unknown domains.
    """
    choice("domains", name, DOMAINS)


def in_domain(split: Split, name: str, domain: int) -> Split:
    """Return a split in one domain; labels, order and standardisation stay the same.

    Raises:
        OptionError: unknown domains, or no such one of them.

    >>> import torch
    >>> split = Split(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), torch.tensor([3]))
    >>> in_domain(split, "negatives", 1).images.flatten().tolist()
    [255, 0]
    """
    check_domains(name)
    if domain not in range(len(DOMAINS[name])):
        raise OptionError(
            message(
                f"a domain from 0 to {len(DOMAINS[name]) - 1} of {name!r}",
                repr(domain),
                "use one of these",
            )
        )
    change = DOMAINS[name][domain]
    return Split(change(split.images), split.labels, split.mean, split.std)
