"""Compose batches of images chosen by their labels.

In a batch drawn by chance the label of one image says nothing about that of another. Many real
batches are otherwise: the regions of one picture, the frames of one film, the positives and
negatives of a contrastive loss. Here such batches are made of any labelled images: groups that
each hold a few labels in equal shares.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from normkit.errors import OptionError, TypeMismatchError, message
from normkit.lab.checks import whole
from normkit.lab.data.split import Split

__all__ = ["Composition", "compose"]

Pairs = tuple[tuple[str, int | bool], ...]


@dataclasses.dataclass(frozen=True)
class Composition:
    """Composition of batches.

    Attributes:
        group: images in a row that belong together.
        labels: how many labels a group has, each with ``group / labels`` of its images.
        mixed: afterwards the images of each batch change places at random, so that
            parts of a batch no longer coincide with groups.

    Raises:
        TypeMismatchError: ``group`` or ``labels`` is no int, or ``mixed`` no bool.
        OptionError: no whole share for each label, or less than one image in it.

    >>> Composition.of((("group", 32), ("labels", 2))).share
    16
    """

    group: int
    labels: int
    mixed: bool = False

    def __post_init__(self) -> None:
        whole("group", self.group, None)
        whole("labels", self.labels, None)
        if not isinstance(self.mixed, bool):
            raise TypeMismatchError(
                message("mixed to be True or False", repr(self.mixed), "use one of these")
            )
        if self.labels < 1 or self.group < 1 or self.group % self.labels:
            raise OptionError(
                message(
                    "labels to divide group",
                    f"group={self.group}, labels={self.labels}",
                    "use e.g. group=32, labels=2",
                )
            )

    @classmethod
    def of(cls, pairs: Pairs) -> Composition:
        """Create it from the pairs (name, value) of a run's description.

        Raises:
            OptionError: a name that is not known, missing, or there twice.
        """
        values = dict(pairs)
        names = {field.name for field in dataclasses.fields(cls)}
        if not {"group", "labels"} <= set(values) <= names or len(values) < len(pairs):
            raise OptionError(
                message(
                    "group and labels, and optionally mixed, in a composition",
                    ", ".join(name for name, _ in pairs) or "nothing",
                    "use e.g. (('group', 32), ('labels', 2))",
                )
            )
        return cls(**values)  # type: ignore[arg-type]  # checked there

    @property
    def share(self) -> int:
        """Images per label in a group."""
        return self.group // self.labels


def compose(
    split: Split, composition: Composition, batch_size: int, *, seed: int, epoch: int
) -> Split:
    """Order as many images as a split has so that each group has few labels.

    Which labels meet in a group is drawn by chance, in proportion to the images that are left of
    each. No group is an exception: where a label has no share left, it starts again, so that near
    the end a few images come twice and others not at all. The order depends on the arguments
    only; the global generators are left alone.

    Args:
        batch_size: images that ``composition.mixed`` mixes, those of one batch.
        seed: of the run.
        epoch: counts from 0; each has an order of its own.

    Raises:
        OptionError: the images have fewer labels than a group, or a label less than a share.

    >>> labels = torch.arange(40) % 4
    >>> split = Split(torch.zeros(40, 1, 1, 1, dtype=torch.uint8), labels)
    >>> mixed = compose(split, Composition(group=8, labels=2), 8, seed=0, epoch=0)
    >>> [len(set(group.tolist())) for group in mixed.labels.split(8)]
    [2, 2, 2, 2, 2]
    """
    # Three numbers, so that no order here is one of data.batches, which takes two.
    rng = np.random.default_rng([seed, epoch, composition.group])
    labels = split.labels.numpy()
    images = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    _check(images, composition)
    share = composition.share
    remaining = np.array([len(members) / share for members in images])
    stacks: list[list[int]] = [[] for _ in images]
    order: list[int] = []
    while len(order) < len(labels):
        # A label that is used up may still be drawn where all others are in the group already.
        chance = np.maximum(remaining, 1e-9)
        group: list[int] = []
        for label in rng.choice(
            len(images), composition.labels, replace=False, p=chance / chance.sum()
        ):
            if len(stacks[label]) < share:
                stacks[label] = rng.permutation(images[label]).tolist()
            group += (stacks[label].pop() for _ in range(share))
            remaining[label] -= 1
        # In no order: the last batch may have part of a group.
        order += rng.permutation(group).tolist()
    chosen = torch.tensor(order[: len(labels)])
    if composition.mixed:
        parts = chosen.split(batch_size)
        chosen = torch.cat([part[torch.from_numpy(rng.permutation(len(part)))] for part in parts])
    return Split(split.images[chosen], split.labels[chosen], split.mean, split.std)


def _check(images: list[np.ndarray], composition: Composition) -> None:
    fewest = min((len(members) for members in images), default=0)
    if len(images) < composition.labels or fewest < composition.share:
        raise OptionError(
            message(
                f"{composition.labels} labels with at least {composition.share} images each",
                f"{len(images)} labels, one of them with {fewest} images",
                "use more images, or smaller groups",
            )
        )
