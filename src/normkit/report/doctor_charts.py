"""Pictures of a diagnosis: the gap layer by layer, the worst layer, what treatments bring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.finding import Gain
from normkit.doctor.profile import Channels
from normkit.doctor.treatments import RECALIBRATE, RECALIBRATE_ON_EVALUATION
from normkit.handle import place_name
from normkit.lab.findings import Chart, Line
from normkit.statistics.estimates.gaps import MIN_GAP, Gap

__all__ = ["diagnosis_charts"]

ROWS = 16
"""Layers up to which each gets a row with its name; more are numbered along an axis."""

LARGEST = 3
"""Layers that are named where all are numbered."""

SPREAD = 1.96
"""Deviations to each side that hold 95 % of batches' means."""

TREATMENTS = {
    RECALIBRATE: "of the training batches",
    RECALIBRATE_ON_EVALUATION: "of the evaluation batches",
}


def diagnosis_charts(diagnosis: Diagnosis) -> list[Chart]:
    """Return the charts for which there are figures."""
    pictures = []
    if diagnosis.tried:
        pictures.append(_treatments(diagnosis.tried))
    if diagnosis.profile is not None and diagnosis.profile.layers:
        pictures += _layers(diagnosis.profile.layers)
        if diagnosis.profile.worst is not None:
            pictures += _channels(diagnosis.profile.worst)
    return pictures


def _treatments(tried: Mapping[str, Gain]) -> Chart:
    gains = list(tried.values())
    first = gains[0]
    points = first.unit == "points"
    sign = 1 if points else -1  # a loss gained is a loss that is gone
    unit = "accuracy in %" if points else "loss"
    ends = [sorted(g.before + sign * step for step in (g.low, g.high)) for g in gains]
    line = Line(
        unit, tuple(range(len(gains) + 1)), (first.before, *(gain.after for gain in gains)),
        (None, *(low for low, _ in ends)), (None, *(high for _, high in ends)), arm="running",
    )  # fmt: skip
    return Chart(
        "treatments", "Evaluation as it is, and with what was tried", "running statistics", unit,
        (line,),
        f"Each was tried on the same {first.samples:,} evaluation samples, and undone. Whiskers: "
        "95 % interval of the change from the first row.",
        kind="dots", rows=("as they are", *(TREATMENTS.get(key, key) for key in tried)),
    )  # fmt: skip


def _layers(layers: Mapping[str, Gap]) -> list[Chart]:
    means = [_finite(gap.mean) for gap in layers.values()]
    factors = [_finite(gap.variance) for gap in layers.values()]
    text = (
        "Distance of the running statistics from those of the layer's input in training, a root "
        "mean square over channels. "
    )
    return [
        _profile(
            "means", "Running means, layer by layer", "deviations off", layers, means, MIN_GAP,
            f"{text}More than {MIN_GAP} deviations matter, if they are more than chance.", False,
        ),
        _profile(
            "variances", "Running variances, layer by layer", "factor off", layers, factors,
            1 + MIN_GAP,
            f"{text}1 is right; a factor of more than {1 + MIN_GAP:g} matters, up or down.", True,
        ),
    ]  # fmt: skip


def _profile(
    key: str,
    title: str,
    unit: str,
    layers: Mapping[str, Gap],
    values: Sequence[float | None],
    threshold: float,
    text: str,
    logarithmic: bool,
) -> Chart:
    names = [_named(name) for name in layers]
    rows = len(names) <= ROWS
    places = tuple(float(number) for number in range(not rows, len(names) + (not rows)))
    lines = (
        Line("running statistics", places, tuple(values), arm="running"),
        Line("what matters", places, (threshold,) * len(names), role="data" if rows else "theory"),
    )
    if rows:
        return Chart(
            key, title, "layer", unit, lines, text, kind="dots", rows=tuple(names),
            y_log=logarithmic,
        )  # fmt: skip
    largest = sorted(
        ((value, name) for value, name in zip(values, names, strict=True) if value is not None),
        reverse=True,
    )[:LARGEST]
    listed = ", ".join(f"{name} ({value:.2f})" for value, name in largest)
    return Chart(
        key, title, "layer, in the order of the calls", unit, lines, f"{text} Largest: {listed}.",
        y_log=logarithmic,
    )  # fmt: skip


def _channels(worst: Channels) -> list[Chart]:
    """Draw what a layer remembers beside what single batches show, channel by channel."""
    name = place_name(worst.layer)
    known = [
        row
        for row in zip(*worst[1:6], strict=True)
        if all(map(math.isfinite, row[:4])) and row[1] > 0 and row[3] > 0
    ]
    if not known:
        return []
    means = sorted(
        ((running - mean) / deviation, SPREAD * error * worst.batches**0.5 / deviation)
        for running, _, mean, deviation, error in known
    )
    factors = sorted(remembered / deviation for _, remembered, _, deviation, _ in known)
    places = tuple(float(number) for number in range(1, len(known) + 1))
    reach = tuple(None if math.isnan(wide) else wide for _, wide in means)
    zero = (0.0,) * len(known)
    return [
        Chart(
            "channels-mean", f"Worst layer, {name}: remembered means",
            "channel, by how far its mean is off", "deviations off",
            (
                Line("remembered", places, tuple(off for off, _ in means), arm="running"),
                Line(
                    "training batches", places, zero,
                    tuple(None if wide is None else -wide for wide in reach), reach,
                    arm="training", note=f"band: 95 % of {worst.batches:,} batches' means",
                ),
            ),
            "Distance of each channel's running mean from the mean of the training batches, in "
            "deviations of the channel. The band is where the means of single batches lie: an "
            "average over many batches stays well inside; one over a batch or two fills it; one "
            "of other weights or other data leaves it.",
        ),
        Chart(
            "channels-deviation", f"Worst layer, {name}: remembered deviations",
            "channel, by the factor", "factor",
            (
                Line("remembered", places, tuple(factors), arm="running"),
                Line("training batches", places, (1.0,) * len(known), arm="training"),
            ),
            "Running deviation of each channel as a factor of that of the training batches; 1 is "
            "right. Evaluation divides by it.", y_log=True,
        ),
    ]  # fmt: skip


def _named(name: str) -> str:
    """Name a layer so that it does not look like a number."""
    return f"layer {name}" if name.isdigit() else place_name(name)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
