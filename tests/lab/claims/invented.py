"""Evidence for any claim, without training: each number a function of the run and its name."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from normkit.lab.claims.claim import SETUP, Available, Claim, Evidence, Preset
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.runs import Planned, Points, Run

WORLDS = ("clear", "broken", "partial")
"""All runs are there; some diverged; some are missing."""
WORDS: dict[str, Any] = {
    "topic": "training",
    "source_setup": dict.fromkeys(SETUP, "as here"),
    "figures": "",
    "at_scale": (),
    "holds": "",
    "practice": "",
}
"""What :func:`normkit.lab.claims.study.define` asks for and a test may not."""
STEPS = (1, 5, 10, 50, 100, 200)


@functools.lru_cache(maxsize=1 << 18)
def uniform(*parts: object) -> float:
    """A number in [0, 1) that these parts decide."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


class Metrics(Mapping[str, Points]):
    """Whatever metric is asked for; listed are those that every run records."""

    def __init__(self, config: RunConfig, arm: str, diverged: bool) -> None:
        self._config, self._arm, self._diverged = config, arm, diverged

    def __getitem__(self, name: str) -> Points:
        config = self._config
        if config.kind == "timing":
            return ((1, 0, self._value(name, 0)),)
        if name == "train_loss" or name.startswith(
            ("activation", "gradient", "landscape", "layer")
        ):
            return tuple((step, 0, self._value(name, step)) for step in STEPS)
        final = set(config.final_evaluations)
        epochs = range(config.epochs)
        if any(name.endswith(named("", condition)) for condition in final):
            epochs = range(config.epochs - 1, config.epochs)
        per = config.steps_per_epoch
        return tuple(((e + 1) * per, e, self._value(name, e)) for e in epochs)

    def _value(self, name: str, at: int) -> float | None:
        if self._diverged and at >= 1:
            return None
        config, arm = self._config, self._arm
        setting = (config.norm, config.lr, config.batch_size, config.model_options)
        setting += config.norm_options  # nothing where there are none
        chance = 0.03 * uniform(arm, setting, name, at, config.seed)
        level = 0.25 * uniform(arm, setting, name) + chance
        progress = 0.3 * (1 - 1 / (at + 2))
        if "accuracy" in name:
            return 0.4 + level + progress
        if "loss" in name:
            return 2.4 - 4 * (level + progress)
        return 0.05 + level + progress

    def __iter__(self) -> Iterator[str]:
        return iter(("epoch_train_loss", "test_accuracy", "test_loss", "train_loss"))

    def __len__(self) -> int:
        return 4

    def __contains__(self, name: object) -> bool:
        return True


class Vector(Mapping[int, tuple[float, ...]]):
    """One vector by step, computed when it is read."""

    def __init__(self, config: RunConfig, arm: str, name: str) -> None:
        self._config, self._arm, self._name = config, arm, name

    def __getitem__(self, step: int) -> tuple[float, ...]:
        if step not in STEPS:
            raise KeyError(step)
        name = self._name
        scale = 0.5 + 2 * uniform(self._arm, name, step) + 0.1 * uniform(self._config.seed, step)
        if name.endswith("density"):
            return tuple(scale * uniform(name, i) for i in range(60))
        return tuple(scale * (i - 49.5) / 25 for i in range(100))

    def __iter__(self) -> Iterator[int]:
        return iter(STEPS)

    def __len__(self) -> int:
        return len(STEPS)


class Vectors(Mapping[str, Any]):
    """Whatever vector is asked for, at every step: increasing numbers."""

    def __init__(self, config: RunConfig, arm: str) -> None:
        self._config, self._arm = config, arm

    def __getitem__(self, name: str) -> Vector:
        return Vector(self._config, self._arm, name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def evidence(
    claim: Claim, preset: Preset, world: str = "clear", *, seeds: int | None = None
) -> Evidence:
    """All planned runs of a claim with invented numbers, the same at every call.

    With ``seeds``, the runs of further seeds have diverged, in the world "broken", or are missing.
    """
    planned = []
    for arm, config in claim.plan(preset, Available.whole(claim.data)):
        odd = uniform("odd", config.seed, arm, config.lr, config.batch_size)
        diverged = world == "broken" and odd < 0.3 and config.kind == "training"
        missing = world == "partial" and (config.seed >= 2 or odd < 0.1)
        if seeds is not None:
            diverged = world == "broken" and config.seed >= seeds and config.kind == "training"
            missing = world != "broken" and config.seed >= seeds
        run = Run(
            config=config,
            status="waiting" if missing else "diverged" if diverged else "done",
            step=config.steps,
            seconds=1.0,
            diverged_step=7 if diverged else None,
            error="",
            versions={},
            machine="",
            finished=None,
            metrics={} if missing else Metrics(config, arm, diverged),
            vectors={} if missing else Vectors(config, arm),
        )
        planned.append(Planned(arm, run))
    return Evidence(preset, tuple(planned))
