"""Further conditions of evaluation, as plain values: other statistics, or other images.

A *condition* is a tuple of a name and whole numbers:

* ``("population", samples, batch_size)``: with the statistics of so many training images,
  estimated from batches of that size;
* ``("batch", batch_size)``: with the statistics of each batch of test images itself;
* ``("composed", group, labels)``: the same, in batches of ``group`` test images that share
  ``labels`` labels (:mod:`normkit.lab.data.composition`). No such batches can be had without
  knowing the labels: it shows what a network made of its training batches;
* ``("train", images)``: with the remembered statistics, on so many training images of the run
  instead of the test images. ``epoch_train_accuracy`` is of the weights and the noise (dropout,
  batch statistics) of training; this is what a gap between training and test is measured with. The
  metrics keep their names, ``test_accuracy@train-1000``;
* ``("corrupted", kind, severity)``: with the remembered statistics, on test images that are
  corrupted (:mod:`normkit.lab.data.corruptions`); ``("corrupted-batch", kind, severity,
  batch_size)`` with the statistics of each batch of them, in random order, and
  ``("corrupted-sorted", kind, severity, batch_size)`` the same in the order of their labels, as a
  stream would bring them that shows one thing after the other;
* ``("domains-shared", samples, batch_size)``: of a run on several domains, with one set of
  population statistics for all of them (:mod:`normkit.lab.domains`);
* ``("domains-specific", samples, batch_size)``: the same, with each domain's own.

The results are metrics named after it, ``test_accuracy@population-10000-256``. What a condition
does is in :mod:`normkit.lab.evaluations`.
"""

from __future__ import annotations

from normkit.errors import OptionError, message
from normkit.lab.data.composition import Composition
from normkit.lab.data.corruptions import check_corruption

__all__ = ["CONDITIONS", "Condition", "check_condition", "named"]

Condition = tuple[str | int, ...]

CONDITIONS: dict[str, tuple[str, ...]] = {
    "population": ("samples", "batch_size"),
    "batch": ("batch_size",),
    "composed": ("group", "labels"),
    "train": ("images",),
    "corrupted": ("kind", "severity"),
    "corrupted-batch": ("kind", "severity", "batch_size"),
    "corrupted-sorted": ("kind", "severity", "batch_size"),
    "domains-shared": ("samples", "batch_size"),
    "domains-specific": ("samples", "batch_size"),
}
"""The conditions by name, with what their numbers mean."""


def named(metric: str, condition: Condition) -> str:
    """Return the name of a metric measured under a condition.

    >>> named("test_accuracy", ("batch", 100))
    'test_accuracy@batch-100'
    """
    return f"{metric}@{'-'.join(str(part) for part in condition)}"


def check_condition(
    condition: Condition, *, train_images: int, test_images: int, domains: str = ""
) -> None:
    """Raise if a run with so many images, or these domains, cannot be evaluated like this.

    Raises:
        OptionError: unknown condition, wrong numbers, or too few images for them.
    """
    name, *numbers = condition or ("",)
    meanings = CONDITIONS.get(str(name))
    if meanings is None:
        raise OptionError(
            message(
                f"one of the conditions {', '.join(CONDITIONS)}", repr(name), "use one of these"
            )
        )
    if str(name).startswith("domains-") != bool(domains):
        raise OptionError(
            message(
                "the conditions domains-… for a run with domains, and for no other run",
                f"{name!r} and domains={domains!r}",
                "leave out the condition, or change domains",
            )
        )
    if len(numbers) != len(meanings) or not all(type(n) is int and n >= 1 for n in numbers):
        raise OptionError(
            message(
                f"the condition {name!r} with {' and '.join(meanings)}, integers from 1",
                repr(numbers),
                f"write ({', '.join([repr(name), *meanings])})",
            )
        )
    if name == "composed":
        group, labels = (int(number) for number in numbers)
        Composition(group, labels)
    values = dict(zip(meanings, (int(number) for number in numbers), strict=True))
    images = values.get("samples", test_images)
    if images > train_images and "samples" in values:
        raise OptionError(
            message(
                f"samples from the run's {train_images} training images",
                str(images),
                f"ask for {train_images} or fewer",
            )
        )
    if name == "train":
        if values["images"] > train_images:
            raise OptionError(
                message(
                    f"images among the run's {train_images} training images",
                    str(values["images"]),
                    f"ask for {train_images} or fewer",
                )
            )
        return
    if "severity" in values:
        check_corruption(values["kind"], values["severity"])
    size = values.get("batch_size", values.get("group"))
    if size is None:
        return
    if images % size == 1 or size == 1:
        raise OptionError(
            message(
                "at least two images in each batch, because a dense layer has no statistics of one",
                f"{images} images in batches of {size}, the last of them of one",
                "choose another batch size",
            )
        )
