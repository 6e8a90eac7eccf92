"""Under which statistics a model is evaluated, besides those that it remembered, as plain values.

A *condition* is a tuple of a name and whole numbers:

* ``("population", samples, batch_size)``: with the statistics of so many training images,
  estimated from batches of that size;
* ``("batch", batch_size)``: with the statistics of each batch of test images itself.

The results are metrics named after it, ``test_accuracy@population-10000-256``. What a condition
does is in :mod:`normkit.lab.evaluations`; this file needs no torch.
"""

from __future__ import annotations

from normkit.errors import OptionError, explain

__all__ = ["CONDITIONS", "Condition", "check_condition", "named"]

Condition = tuple[str | int, ...]

CONDITIONS: dict[str, tuple[str, ...]] = {
    "population": ("samples", "batch_size"),
    "batch": ("batch_size",),
}
"""The conditions by name, with what their numbers mean."""


def named(metric: str, condition: Condition) -> str:
    """The name of a metric measured under a condition.

    >>> named("test_accuracy", ("batch", 100))
    'test_accuracy@batch-100'
    """
    return f"{metric}@{'-'.join(str(part) for part in condition)}"


def check_condition(condition: Condition, *, train_images: int, test_images: int) -> None:
    """Refuse a condition that no run with so many images can be evaluated under.

    Raises:
        OptionError: as said.
    """
    name, *numbers = condition or ("",)
    meanings = CONDITIONS.get(str(name))
    if meanings is None:
        raise OptionError(
            explain(f"a condition is one of {', '.join(CONDITIONS)}", repr(name), "choose one")
        )
    if len(numbers) != len(meanings) or not all(type(n) is int and n >= 1 for n in numbers):
        raise OptionError(
            explain(
                f"the condition {name!r} has {' and '.join(meanings)}, whole numbers from 1 on",
                repr(numbers),
                f"write ({', '.join([repr(name), *meanings])})",
            )
        )
    given = dict(zip(meanings, (int(number) for number in numbers), strict=True))
    images = given.get("samples", test_images)
    if images > train_images and "samples" in given:
        raise OptionError(
            explain(
                "statistics are estimated from the training images of the run",
                f"{images} of {train_images}",
                f"ask for {train_images} or fewer",
            )
        )
    if images % given["batch_size"] == 1 or given["batch_size"] == 1:
        raise OptionError(
            explain(
                "a batch needs two images to have statistics in a dense layer",
                f"{images} images in batches of {given['batch_size']}, the last of them of one",
                "choose another batch_size",
            )
        )
