"""Images and labels in memory: a :class:`Split`, and a :class:`Dataset` of two splits."""

from __future__ import annotations

import dataclasses

import torch

from normkit.errors import DataError, OptionError, ShapeError, TypeMismatchError, message
from normkit.lab.checks import whole

__all__ = ["Dataset", "Split"]


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 (N, C, H, W), 0 to 255.
        labels: int64 (N,), from 0 on.
        mean: of the *training* images, per channel, on the scale where 255 is 1. The test split
            carries the same: both halves have to be standardised alike. None where unknown.
        std: their standard deviation, likewise.

    Raises:
        TypeMismatchError: images are not uint8 or labels not int64.
        ShapeError: another rank, or another number of images than of labels.
        DataError: a negative label.

    >>> pixels = torch.arange(2 * 4, dtype=torch.uint8).reshape(2, 1, 2, 2)
    >>> len(Split(pixels, torch.tensor([1, 0])))
    2
    """

    images: torch.Tensor
    labels: torch.Tensor
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for what, tensor, dtype, rank in (
            ("images", self.images, torch.uint8, 4),
            ("labels", self.labels, torch.int64, 1),
        ):
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype:
                dtype_name = getattr(tensor, "dtype", type(tensor).__name__)
                raise TypeMismatchError(
                    message(f"{what} of {dtype}", str(dtype_name), f"convert with .to({dtype})")
                )
            if tensor.ndim != rank:
                shape = "(N, C, H, W)" if rank == 4 else "(N,)"
                raise ShapeError(
                    message(f"{what} of shape {shape}", str(tuple(tensor.shape)), "reshape them")
                )
        if len(self.images) != len(self.labels):
            raise ShapeError(
                message(
                    "one label for every image",
                    f"{len(self.images)} images and {len(self.labels)} labels",
                    "pass as many labels as images",
                )
            )
        if len(self.labels) and int(self.labels.min()) < 0:
            raise DataError(
                message("labels from 0", f"{int(self.labels.min())}", "renumber the classes")
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, n: int, seed: int | None = None) -> Split:
        """Return the first ``n`` images, or with a seed ``n`` random ones with balanced classes.

        With a seed every class gives as many as every other, or one more, until a class has no
        more to give; the order is mixed. The same seed gives nested choices: ``take(100, seed=0)``
        begins as ``take(10, seed=0)`` does. The global generator is left alone.

        Raises:
            TypeMismatchError: ``n`` or ``seed`` is no int.
            OptionError: ``n`` is below 0 or more than there are.

        >>> labels = torch.tensor([0] * 6 + [1] * 2)
        >>> split = Split(torch.zeros(8, 1, 1, 1, dtype=torch.uint8), labels)
        >>> sorted(split.take(4, seed=0).labels.tolist()), split.take(4).labels.tolist()
        ([0, 0, 1, 1], [0, 0, 0, 0])
        """
        if not 0 <= whole("the number of images to take", n, None) <= len(self):
            raise OptionError(
                message(f"between 0 and {len(self)} images to take", str(n), "take fewer")
            )
        if seed is None:
            chosen = torch.arange(n)
        else:
            generator = torch.Generator().manual_seed(whole("seed", seed, None))
            order = torch.randperm(len(self), generator=generator)
            labels = self.labels[order]
            # Each image's place among those of its class, in the random order.
            by_class = torch.argsort(labels, stable=True)
            starts = torch.searchsorted(labels[by_class], labels[by_class])
            place = torch.empty_like(by_class)
            place[by_class] = torch.arange(len(self)) - starts
            # All the firsts, then all the seconds, and so on: any beginning is balanced.
            chosen = order[torch.argsort(place, stable=True)[:n]]
        return Split(self.images[chosen], self.labels[chosen], self.mean, self.std)

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation per channel, over all pixels; 255 counts as 1.

        Computed from counts of the 256 values, in float64.

        Raises:
            DataError: there are no images.

        >>> ones = torch.full((1, 1, 1, 2), 255, dtype=torch.uint8)
        >>> Split(ones, torch.tensor([0])).moments()
        ((1.0,), (0.0,))
        """
        if not self.images.numel():
            raise DataError(
                message("at least one image to compute moments of", "none", "take at least one")
            )
        values = torch.arange(256, dtype=torch.float64) / 255
        means, deviations = [], []
        for channel in self.images.unbind(1):
            counts = torch.bincount(channel.flatten(), minlength=256)
            share = counts.double() / channel.numel()
            mean = (share * values).sum()
            means.append(float(mean))
            deviations.append(float((share * (values - mean).square()).sum().sqrt()))
        return tuple(means), tuple(deviations)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Data set in memory.

    Attributes:
        name: as :func:`normkit.lab.data.load` takes it, "fashion-mnist".
        title: as people write it, "Fashion-MNIST".
        origin: where the files came from, in one line.
        licence: of the data.
        classes: their names, in the order of the labels.
        train: what to learn from.
        test: what to judge with.
        subset: these are only some of the data set's images.

    Raises:
        DataError: a label beyond the classes, or two splits of different image size.
    """

    name: str
    title: str
    origin: str
    licence: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    subset: bool = False

    def __post_init__(self) -> None:
        for what, split in (("train", self.train), ("test", self.test)):
            if len(split) and int(split.labels.max()) >= len(self.classes):
                raise DataError(
                    message(
                        f"labels 0 to {len(self.classes) - 1} in {self.title}",
                        f"{int(split.labels.max())} in {what}",
                        "get the files again, or name all classes",
                    )
                )
        shapes = [tuple(split.images.shape[1:]) for split in (self.train, self.test)]
        if shapes[0] != shapes[1]:
            raise DataError(
                message(
                    "train and test images of one shape",
                    f"{shapes[0]} and {shapes[1]}",
                    "use two halves of one data set",
                )
            )
