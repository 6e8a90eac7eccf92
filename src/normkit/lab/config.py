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
from typing import Any, Literal, get_args

from normkit.errors import OptionError, StoreError, message
from normkit.lab.checks import choice, finite, whole
from normkit.lab.conditions import Condition, check_condition
from normkit.lab.data.composition import Composition
from normkit.lab.data.domains import check_domains

__all__ = ["FORMAT", "Edition", "RunConfig"]

FORMAT = 1
"""Version of the meaning of the fields. Part of each key."""

Edition = Literal["full", "subset"]
Kind = Literal["training", "timing"]
TaskName = Literal["classification", "denoising"]
Schedule = Literal["constant", "cosine", "step"]
_PAIRS = (
    "model_options",
    "norm_options",
    "composition",
    "probes",
    "evaluations",
    "final_evaluations",
)
_CHOICES: dict[str, tuple[str, ...]] = {
    "edition": get_args(Edition),
    "kind": get_args(Kind),
    "optimizer": ("sgd", "adam", "adadelta", "rmsprop"),
    "schedule": get_args(Schedule),
    "task": get_args(TaskName),
}
_WITH_MOMENTUM = ("sgd", "rmsprop")
_WHOLE = {
    "train_images": 1,
    "test_images": 1,
    "size": 1,
    "batch_size": 1,
    "frozen_epochs": 0,
    "epochs": 1,
    "seed": 0,
    "loss_every": 1,
    "evaluate_every": 1,
}
"""Fields with whole numbers, and the least of each."""


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
        for name, least in _WHOLE.items():
            whole(name, getattr(self, name), least)
        for name in ("lr", "momentum", "weight_decay", "noise", "noise_spread"):
            finite(name, getattr(self, name))
        if self.lr == 0:
            raise OptionError(message("a positive lr", repr(self.lr), "use e.g. lr=0.1"))
        for name, allowed in _CHOICES.items():
            choice(name, getattr(self, name), allowed)
        if self.momentum and self.optimizer not in _WITH_MOMENTUM:
            raise OptionError(
                message(
                    f"momentum for {' or '.join(_WITH_MOMENTUM)} only",
                    f"momentum={self.momentum!r} with optimizer={self.optimizer!r}",
                    "leave momentum out",
                )
            )
        if self.frozen_epochs >= self.epochs:
            raise OptionError(
                message(
                    f"frozen_epochs smaller than epochs ({self.epochs})",
                    repr(self.frozen_epochs),
                    "leave at least one epoch with batch statistics",
                )
            )
        if self.frozen_epochs and (self.evaluations or self.final_evaluations):
            raise OptionError(
                message(
                    "no evaluation conditions for a run with frozen statistics",
                    f"frozen_epochs={self.frozen_epochs} with evaluations",
                    "leave the conditions out; test_accuracy is measured with the frozen "
                    "statistics",
                )
            )
        if self.composition:
            Composition.of(self.composition)
        if self.domains:
            check_domains(self.domains)
        for condition in (*self.evaluations, *self.final_evaluations):
            check_condition(
                condition,
                train_images=self.train_images,
                test_images=self.test_images,
                domains=self.domains,
            )
        self._check_task()
        self._check_drop_last()
        for probe, every in self.probes:
            whole(f"the interval of the probe {probe!r}", every)

    def _check_drop_last(self) -> None:
        if type(self.drop_last) is not bool:
            raise OptionError(
                message("drop_last to be True or False", repr(self.drop_last), "use one of these")
            )
        if self.drop_last and self.kind != "training":
            raise OptionError(
                message(
                    "drop_last for a training only",
                    f"drop_last=True with kind={self.kind!r}",
                    "leave it out: one batch is timed, whatever its size",
                )
            )
        if self.drop_last and self.batch_size > self.train_images:
            raise OptionError(
                message(
                    f"a batch_size of at most train_images ({self.train_images}) with drop_last",
                    repr(self.batch_size),
                    "use a smaller batch_size, more images, or drop_last=False",
                )
            )

    def _check_task(self) -> None:
        denoising = self.task == "denoising"
        if denoising != (self.noise > 0):
            raise OptionError(
                message(
                    "noise above 0 for denoising, and no noise for any other task",
                    f"task={self.task!r} with noise={self.noise!r}",
                    "use e.g. task='denoising', noise=0.1",
                )
            )
        if not (self.noise_spread == 0 or (denoising and self.noise_spread < 1)):
            raise OptionError(
                message(
                    "noise_spread of 0, or below 1 for denoising",
                    f"task={self.task!r} with noise_spread={self.noise_spread!r}",
                    "use e.g. noise_spread=0.8: deviations from 0.2 to 1.8 times the noise",
                )
            )
        conditions = (*self.evaluations, *self.final_evaluations)
        labelled = any(condition[0] != "population" for condition in conditions)
        if denoising and (labelled or self.composition or self.domains):
            # Each test image has its one noise, which goes by the place in the split's order.
            raise OptionError(
                message(
                    "denoising to have one domain, random batches, and no condition but population",
                    f"{conditions or ''} {self.composition or ''} {self.domains}".strip(),
                    "leave it out",
                )
            )

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
