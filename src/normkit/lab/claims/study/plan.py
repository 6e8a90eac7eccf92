"""Plans: the runs of a claim, as arms that differ in what they say and in nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from normkit.errors import OptionError, message
from normkit.lab.claims.claim import Arms, Available, Preset, Scale
from normkit.lab.config import RunConfig
from normkit.lab.data.catalogue import owner_of

__all__ = [
    "BN",
    "NARROW_RESNET",
    "ON_AND_OFF",
    "WITH",
    "WITHOUT",
    "At",
    "Fields",
    "Plan",
    "population",
]

WITH, WITHOUT = "with BN", "without BN"
BN = "batch"
"""Normalizer of the arm with batch normalization: normkit's own layers."""

Fields = Mapping[str, Any]
"""Fields of a :class:`~normkit.lab.config.RunConfig`; a function gets an :class:`At` and returns
the value."""

ON_AND_OFF: Mapping[str, Fields] = {WITH: {"norm": BN}, WITHOUT: {"norm": "none"}}
"""Arms of most claims: with and without batch normalization."""


@dataclasses.dataclass(frozen=True)
class At:
    """Argument of a field that is a function: the preset, the data, the images used."""

    preset: Preset
    data: Available
    scale: Scale
    train: int
    test: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """Runs seed by seed, setting by setting, arm by arm.

    ``base`` holds the fields that all runs share, ``presets`` those that replace them at a preset;
    each of ``settings`` (which may differ by preset) and each arm adds its own. ``seeds`` gives an
    arm fewer seeds than the preset has, for arms that decide nothing. A field may be a function of
    :class:`At`. Trainings have ``drop_last``, unless a field says otherwise: the step on a small
    last batch is noisy, evaluation follows it, and running statistics weigh it like a full one.
    At a preset without a scale there are no runs.
    """

    scales: Mapping[Preset, Scale]
    arms: Mapping[str, Fields]
    base: Fields
    presets: Mapping[Preset, Fields] = dataclasses.field(default_factory=dict)
    settings: Sequence[Fields] | Mapping[Preset, Sequence[Fields]] = ({},)
    seeds: Mapping[str, Mapping[Preset, int]] = dataclasses.field(default_factory=dict)

    def __call__(self, preset: Preset, available: Available) -> Arms:
        """Return the runs of this preset, each with its arm.

        Raises:
            OptionError: an arm's data set is made of other files than the available one.
        """
        scale = self.scales.get(preset)
        if scale is None:
            return []
        images = available.at_most(scale.train, scale.test)
        settings = self.settings
        if isinstance(settings, Mapping):
            settings = settings[preset]
        at = At(preset, available, scale, images["train_images"], images["test_images"])
        shared = {**self.base, **self.presets.get(preset, {}), **images}

        def config(seed: int, *more: Fields) -> RunConfig:
            fields = dict(shared)
            for each in more:
                fields |= each
            values = {name: each(at) if callable(each) else each for name, each in fields.items()}
            if owner_of(values["data"]) is not owner_of(available.data):
                # Its edition, its number of images and their side may be others.
                raise OptionError(
                    message(
                        f"arms on data sets of the same files as {available.data}",
                        repr(values["data"]),
                        "make it a claim of its own, or name it in the claim's also",
                    )
                )
            defaults = {
                "epochs": scale.epochs,
                "drop_last": values.get("kind", "training") == "training",
            }
            return RunConfig(**defaults | values, seed=seed)

        return [
            (arm, config(seed, setting, fields))
            for seed in range(scale.seeds)
            for setting in settings
            for arm, fields in self.arms.items()
            if seed < self.seeds.get(arm, {}).get(preset, scale.seeds)
        ]

    def touring(self, scale: Scale, fields: Fields | None = None) -> Plan:
        """Return this plan with a tour: its scale, and fields that replace those of ``base``.

        For a plan that other claims use, which then stay out of the tour.
        """
        return dataclasses.replace(
            self,
            scales={**self.scales, "tour": scale},
            presets={**self.presets, "tour": fields or {}},
        )


NARROW_RESNET: Mapping[Preset, Fields] = {
    "quick": {"model": "resnet18", "model_options": (("width", 4),), "size": 16},
    "full": {"model": "resnet18", "model_options": (("width", 4),), "size": 16},
    "paper": {"model": "resnet50", "size": 28},
}
"""Fields for a claim whose source had a ResNet on ImageNet: ResNet-18 of width 4 and images of 16
pixels, which trains in seconds on a CPU; at the sources' own scale ResNet-50 and images of 28."""


def population(images: int, batch: int) -> Any:
    """Return an evaluation with the population statistics of so many training images, or all."""
    return lambda at: (("population", min(images, at.train), min(images, at.train, batch)),)
