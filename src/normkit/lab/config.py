"""One training described by values, and the key that identifies it.

Claims that need the same training share one run, because a run is stored under the SHA-256 of its
description. The description holds everything that can change the numbers, and nothing that cannot
(the number of threads or workers, the folder of the data).

Fields at their default are left out of the hashed text, so adding a field leaves the keys of stored
runs unchanged. Changing the *meaning* of a field raises ``FORMAT``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from normkit.errors import StoreError, message
from normkit.lab.conditions import Condition
from normkit.lab.config_rules import Edition, Kind, Schedule, TaskName, check_rules

__all__ = ["FORMAT", "Edition", "RunConfig"]

FORMAT = 1
"""Version of the meaning of the fields. Part of each key."""

_PAIRS = (
    "model_options",
    "norm_options",
    "composition",
    "probes",
    "evaluations",
    "final_evaluations",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Description of one training.

    ``seed`` decides the initial weights, the images drawn from the training set, their order and
    the masks of dropout; see :mod:`normkit.lab.training` for how two arms with one seed are
    paired. ``edition`` says whether the images come from the whole data set or from the small
    subset that is shipped. ``loss_every`` counts steps between two records of the training loss.
    ``probes`` holds pairs (name, every how many steps), see :mod:`normkit.lab.probes`. ``kind``
    "timing" measures the time of one step instead of training, see :mod:`normkit.lab.timing`.

    ``norm_options`` holds pairs (name, value) for the normalizers of the model, such as
    ("momentum", 0.05). ``composition`` fixes the labels in a batch, in pairs (name, value), see
    :class:`normkit.lab.data.composition.Composition`; without it they are random. ``domains`` names
    a pair of domains; every image is seen in each (:mod:`normkit.lab.domains`); ``batch_size``
    counts an image once. ``drop_last`` leaves out the images of an epoch that do not fill a batch,
    other ones in each epoch. ``task`` is the task to learn (:mod:`normkit.lab.tasks`); for
    denoising, ``noise`` is the standard deviation of the noise, on the scale where black is 0 and
    white is 1, and ``noise_spread`` how far images differ in it (:mod:`normkit.lab.denoising`).
    ``schedule`` is the learning rate schedule (:mod:`normkit.lab.schedules`). The model is
    evaluated after every ``evaluate_every``-th epoch and after the last one; ``evaluations`` are
    further conditions to evaluate it under then (:mod:`normkit.lab.conditions`),
    ``final_evaluations`` those after the last epoch only. In the last ``frozen_epochs`` the layers
    normalize with population statistics in training too (:mod:`normkit.lab.freezing`).

    Raises:
        TypeMismatchError: a field is not of its type.
        OptionError: a field holds an invalid value, or two fields conflict.

    >>> run = RunConfig(model="lenet5", norm="batch", lr=0.1, train_images=512, test_images=256,
    ...                 batch_size=128, epochs=2, seed=0)
    >>> run.steps
    8
    >>> run == RunConfig.from_json(run.to_json())
    True
    >>> len(run.key)
    64
    """

    model: str
    norm: str
    act: str = "relu"
    model_options: tuple[tuple[str, str | int | float | bool | None], ...] = ()
    norm_options: tuple[tuple[str, str | int | float | bool | None], ...] = ()
    data: str = "fashion-mnist"
    edition: Edition = "full"
    train_images: int
    test_images: int
    size: int = 28
    batch_size: int
    drop_last: bool = False
    composition: tuple[tuple[str, int | bool], ...] = ()
    domains: str = ""
    optimizer: str = "sgd"
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    frozen_epochs: int = 0
    epochs: int
    seed: int
    loss_every: int = 5
    evaluate_every: int = 1
    probes: tuple[tuple[str, int], ...] = ()
    evaluations: tuple[Condition, ...] = ()
    final_evaluations: tuple[Condition, ...] = ()
    kind: Kind = "training"
    task: TaskName = "classification"
    noise: float = 0.0
    noise_spread: float = 0.0

    def __post_init__(self) -> None:
        check_rules(self)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; without ``drop_last`` the last batch may be smaller."""
        full, rest = divmod(self.train_images, self.batch_size)
        return full + bool(rest and not self.drop_last)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    @property
    def images(self) -> int:
        """Images that go through a training step, all epochs together: a measure of cost."""
        dropped = self.train_images % self.batch_size if self.drop_last else 0
        return self.epochs * (self.train_images - dropped)

    def is_evaluated(self, epoch: int) -> bool:
        """Return True if the model is evaluated after this epoch (from 0)."""
        return (epoch + 1) % self.evaluate_every == 0 or epoch == self.epochs - 1

    def conditions(self, epoch: int) -> tuple[Condition, ...]:
        """Return the further conditions of evaluation after this epoch (from 0), each once."""
        last = self.final_evaluations if epoch == self.epochs - 1 else ()
        return tuple(dict.fromkeys((*self.evaluations, *last)))

    @property
    def key(self) -> str:
        """SHA-256 of the canonical description and of ``FORMAT``, in hexadecimal."""
        return hashlib.sha256(f"{FORMAT}:{self.to_json()}".encode()).hexdigest()

    def to_json(self) -> str:
        """Return the canonical text: sorted names, no blanks, fields at their default left out."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.default is dataclasses.MISSING or getattr(self, field.name) != field.default
        }
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Read what :meth:`to_json` wrote.

        Raises:
            StoreError: the text has fields that this version does not know.
        """
        values: dict[str, Any] = json.loads(text)
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise StoreError(
                message(
                    "only fields that this version of normkit knows in a run",
                    ", ".join(sorted(unknown)),
                    "use the normkit that made it, or a newer one, or name another store with "
                    "--store",
                )
            )
        for name in _PAIRS:
            values[name] = tuple(tuple(pair) for pair in values.get(name, ()))
        return cls(**values)
