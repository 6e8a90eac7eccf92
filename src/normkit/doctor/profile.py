"""Figures behind a diagnosis, as plain numbers: what its pictures are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from normkit.doctor.examination import Examination
from normkit.statistics.estimates.gaps import Gap

__all__ = ["Channels", "Profile", "plain", "profile_of"]


class Channels(NamedTuple):
    """Running statistics of a layer beside those of the training batches, channel by channel.

    Attributes:
        layer: its name.
        running_mean, running_deviation: what evaluation normalizes with.
        mean, deviation: of the layer's input, given batch statistics upstream.
        error: standard error of ``mean``; NaN from a single batch.
        batches: how many batches these are of, so that ``error * batches**0.5`` is the deviation
            of a single batch's mean.
    """

    layer: str
    running_mean: tuple[float, ...]
    running_deviation: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    error: tuple[float, ...]
    batches: int


class Profile(NamedTuple):
    """Distance of running statistics from the training batches, layer by layer.

    Attributes:
        layers: by layer, in the order of their calls, its :class:`Gap`.
        worst: the layer with the largest gap, by channel; None where it was not measured.
    """

    layers: Mapping[str, Gap]
    worst: Channels | None

    def to_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return {
            "layers": {name: plain(gap._asdict()) for name, gap in self.layers.items()},
            "worst": None if self.worst is None else plain(self.worst._asdict()),
        }


def profile_of(exam: Examination) -> Profile | None:
    """Return the profile of an examination; None without layers measured on training batches."""
    training = exam.training
    if training is None or training.consistency is None:
        return None
    layers = dict(training.consistency.layers)
    worst = max(layers, key=lambda name: _size(layers[name]), default=None)
    return Profile(layers, None if worst is None else _channels(exam, worst))


def _size(gap: Gap) -> float:
    size = gap.mean + math.log(gap.variance) if gap.variance > 0 else math.nan
    return math.inf if math.isnan(size) else size


def _channels(exam: Examination, name: str) -> Channels | None:
    measured = exam.training.measured if exam.training is not None else None
    one = exam.layers.get(name)
    if measured is None or one is None or name not in measured.layers:
        return None
    population = measured.layers[name]
    row = next((row for bank, row in one.banks if bank == name), None)
    mean, variance = one.stats(row)
    running_mean, running_deviation, centre, deviation, error = (
        tuple(values.flatten().tolist())
        for values in (
            mean, variance.sqrt(), population.mean, population.variance.sqrt(),
            population.mean_standard_error,
        )
    )  # fmt: skip
    return Channels(
        name, running_mean, running_deviation, centre, deviation, error, population.batches
    )


def plain(value: Any) -> Any:
    """Return it as JSON can hold it: lists for tuples, None for what is not finite.

    >>> plain({"a": (1.5, float("nan")), "b": "c"})
    {'a': [1.5, None], 'b': 'c'}
    """
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
