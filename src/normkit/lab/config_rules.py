"""Rules of a run's description: which values its fields may have, and which go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from normkit.errors import OptionError, message
from normkit.lab.checks import choice, finite, whole
from normkit.lab.conditions import check_condition
from normkit.lab.data.composition import Composition
from normkit.lab.data.domains import check_domains

if TYPE_CHECKING:
    from normkit.lab.config import RunConfig

__all__ = ["Edition", "Kind", "Schedule", "TaskName", "check_rules"]

Edition = Literal["full", "subset"]
Kind = Literal["training", "timing"]
TaskName = Literal["classification", "denoising"]
Schedule = Literal["constant", "cosine", "step"]
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


def check_rules(config: RunConfig) -> None:
    """Raise if no run can be as described.

    Raises:
        TypeMismatchError: a field is not of its type.
        OptionError: a field holds an invalid value, or two fields conflict.
    """
    for name, least in _WHOLE.items():
        whole(name, getattr(config, name), least)
    for name in ("lr", "momentum", "weight_decay", "noise", "noise_spread"):
        finite(name, getattr(config, name))
    for name, allowed in _CHOICES.items():
        choice(name, getattr(config, name), allowed)
    _check_optimizer(config)
    _check_frozen(config)
    if config.composition:
        Composition.of(config.composition)
    if config.domains:
        check_domains(config.domains)
    for condition in (*config.evaluations, *config.final_evaluations):
        check_condition(
            condition,
            train_images=config.train_images,
            test_images=config.test_images,
            domains=config.domains,
        )
    _check_task(config)
    _check_drop_last(config)
    for probe, every in config.probes:
        whole(f"the interval of the probe {probe!r}", every)


def _check_optimizer(config: RunConfig) -> None:
    if config.lr == 0:
        raise OptionError(message("a positive lr", repr(config.lr), "use e.g. lr=0.1"))
    if config.momentum and config.optimizer not in _WITH_MOMENTUM:
        raise OptionError(
            message(
                f"momentum for {' or '.join(_WITH_MOMENTUM)} only",
                f"momentum={config.momentum!r} with optimizer={config.optimizer!r}",
                "leave momentum out",
            )
        )


def _check_frozen(config: RunConfig) -> None:
    if config.frozen_epochs >= config.epochs:
        raise OptionError(
            message(
                f"frozen_epochs smaller than epochs ({config.epochs})",
                repr(config.frozen_epochs),
                "leave at least one epoch with batch statistics",
            )
        )
    if config.frozen_epochs and (config.evaluations or config.final_evaluations):
        raise OptionError(
            message(
                "no evaluation conditions for a run with frozen statistics",
                f"frozen_epochs={config.frozen_epochs} with evaluations",
                "leave the conditions out; test_accuracy is measured with the frozen statistics",
            )
        )


def _check_drop_last(config: RunConfig) -> None:
    if type(config.drop_last) is not bool:
        raise OptionError(
            message("drop_last to be True or False", repr(config.drop_last), "use one of these")
        )
    if config.drop_last and config.kind != "training":
        raise OptionError(
            message(
                "drop_last for a training only",
                f"drop_last=True with kind={config.kind!r}",
                "leave it out: one batch is timed, whatever its size",
            )
        )
    if config.drop_last and config.batch_size > config.train_images:
        raise OptionError(
            message(
                f"a batch_size of at most train_images ({config.train_images}) with drop_last",
                repr(config.batch_size),
                "use a smaller batch_size, more images, or drop_last=False",
            )
        )


def _check_task(config: RunConfig) -> None:
    denoising = config.task == "denoising"
    if denoising != (config.noise > 0):
        raise OptionError(
            message(
                "noise above 0 for denoising, and no noise for any other task",
                f"task={config.task!r} with noise={config.noise!r}",
                "use e.g. task='denoising', noise=0.1",
            )
        )
    if not (config.noise_spread == 0 or (denoising and config.noise_spread < 1)):
        raise OptionError(
            message(
                "noise_spread of 0, or below 1 for denoising",
                f"task={config.task!r} with noise_spread={config.noise_spread!r}",
                "use e.g. noise_spread=0.8: deviations from 0.2 to 1.8 times the noise",
            )
        )
    conditions = (*config.evaluations, *config.final_evaluations)
    labelled = any(condition[0] != "population" for condition in conditions)
    if denoising and (labelled or config.composition or config.domains):
        # Each test image has its one noise, which goes by the place in the split's order.
        raise OptionError(
            message(
                "denoising to have one domain, random batches, and no condition but population",
                f"{conditions or ''} {config.composition or ''} {config.domains}".strip(),
                "leave it out",
            )
        )
