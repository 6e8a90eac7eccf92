"""What several claims draw and compute alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from normkit.lab.claims.claim import Arms, Evidence, Preset
from normkit.lab.conditions import Condition, named
from normkit.lab.config import RunConfig
from normkit.lab.findings import Chart, Comparison, Line, Table
from normkit.lab.runs import Run
from normkit.lab.verdicts import interval

__all__ = [
    "BN",
    "CHANCE",
    "WITH",
    "WITHOUT",
    "band",
    "differences",
    "extremes",
    "figures",
    "final_loss",
    "learned",
    "metric_chart",
    "narrow_resnet",
    "on_and_off",
    "samples_of",
    "seed_table",
    "seen",
    "under",
]

WITH = "with BN"
WITHOUT = "without BN"
BN = "batch"
"""The normalizer of the arm with batch normalization: normkit's own layers."""

CHANCE = math.log(10)
"""The cross-entropy of guessing among ten classes, in nats."""
GUESSING = 0.1
"""The accuracy of guessing among ten classes."""

Value = Callable[[Run], float | None]


def narrow_resnet(preset: Preset) -> dict[str, Any]:
    """The fields of a run that sees Fashion-MNIST with a ResNet where the source had ImageNet.

    ResNet-18 of width 4 and images of 16 pixels, which trains in seconds on a CPU; at the sources'
    own scale ResNet-50 and images of 28.
    """
    if preset == "paper":
        return {"model": "resnet50", "size": 28}
    return {"model": "resnet18", "model_options": (("width", 4),), "size": 16}


def final_loss(run: Run) -> float | None:
    """Mean training loss of the last epoch; that of guessing, ln 10, where it is not finite."""
    if "epoch_train_loss" not in run.metrics:
        return None
    loss = run.last("epoch_train_loss")
    return CHANCE if loss is None else loss


def on_and_off(make: Callable[[str, int], RunConfig], seeds: int) -> Arms:
    """The two arms of most claims, seed by seed: ``make(norm, seed)`` describes each run."""
    return [
        (arm, make(norm, seed))
        for seed in range(seeds)
        for arm, norm in ((WITH, BN), (WITHOUT, "none"))
    ]


def differences(
    pairs: Sequence[tuple[Run, Run]], value: Value, of_second: Value | None = None
) -> list[float]:
    """First minus second, pair by pair; pairs in which one has no value are left out.

    ``of_second`` is another value for the second of each pair: two measurements of one run are
    compared as a pair of the run with itself.
    """
    found = []
    for first, second in pairs:
        a, b = value(first), (of_second or value)(second)
        if a is not None and b is not None:
            found.append(a - b)
    return found


def seen(run: Run) -> float | None:
    """Accuracy on the batches of the last epoch; that of guessing where the loss was not finite."""
    if "epoch_train_accuracy" not in run.metrics:
        return None
    accuracy = run.last("epoch_train_accuracy")
    return GUESSING if accuracy is None else accuracy


def learned(runs: Sequence[Run]) -> bool:
    """Whether more than half of these runs learned something.

    That an arm loses little, or leaves a narrow gap, says nothing of one that is no better than
    guessing at both ends. Such a question is left open.
    """
    return 2 * sum(run.status != "diverged" for run in runs) > len(runs)


def figures(comparison: Comparison | None, *, scale: float = 1.0, digits: int = 2) -> str:
    """An effect with its interval, for a sentence.

    >>> figures(Comparison("", "", 0.031, 0.02, 0.042, 5, "supported"), scale=100, digits=1)
    '+3.1 [+2.0, +4.2]'
    """
    if comparison is None:
        return "not yet known"
    effect, low, high = (
        f"{value * scale:+.{digits}f}"
        for value in (comparison.effect, comparison.low, comparison.high)
    )
    return f"{effect} [{low}, {high}]"


def band(
    label: str, arm: str, x: Sequence[float], rows: Sequence[Sequence[float | None]]
) -> Line | None:
    """The mean of several runs at each x, with its 95 % interval; None without a run.

    ``rows`` has one row for each run. At an x where a run has no value (it diverged, or was not
    recorded) the others are averaged and there is no band unless two are left.
    """
    if not rows or not x:
        return None
    means: list[float | None] = []
    lows: list[float | None] = []
    highs: list[float | None] = []
    for index in range(len(x)):
        values = [
            value for row in rows if index < len(row) for value in [row[index]] if value is not None
        ]
        mean = low = high = None
        if len(values) > 1:
            mean, low, high = interval(values)
        elif values:
            mean = values[0]
        means.append(mean)
        lows.append(low)
        highs.append(high)
    return Line(label, tuple(x), tuple(means), tuple(lows), tuple(highs), arm=arm)


def metric_chart(
    evidence: Evidence,
    metric: str,
    *,
    key: str,
    title: str,
    y_label: str,
    by: str = "epoch",
    extra: Sequence[Line] = (),
) -> Chart | None:
    """A metric along training, one line for each arm; None if nothing was measured.

    ``by`` is "epoch", for what is measured at the end of each, or "step".
    """
    lines: list[Line] = []
    words: list[str] = []
    for arm in evidence.arms:
        runs = [run for run in evidence.of(arm) if metric in run.metrics]
        if not runs:
            continue
        longest = max(runs, key=lambda run: len(run.metrics[metric])).metrics[metric]
        x = [epoch + 1 if by == "epoch" else step for step, epoch, _ in longest]
        line = band(f"{arm} (mean of {len(runs)})", arm, x, [run.by_epoch(metric) for run in runs])
        if line is not None:
            lines.append(line)
            first, last = line.y[0], line.y[-1]
            if first is not None and last is not None:
                words.append(f"{arm}: from {first:.3f} to {last:.3f}")
    if not lines:
        return None
    return Chart(
        key=key,
        title=title,
        x_label=by,
        y_label=y_label,
        lines=(*lines, *extra),
        text=f"{title}. " + "; ".join(words) + ". The band is the 95 % interval of the mean.",
        markers=by == "epoch",
    )


def seed_table(
    evidence: Evidence,
    columns: Sequence[tuple[str, Value]],
    *,
    key: str = "seeds",
    title: str = "Seed by seed",
    digits: int = 4,
) -> Table:
    """One row for each run: arm, seed, how it ended, and the columns' values."""
    rows = []
    for planned in evidence.planned:
        run = planned.run
        values = [value(run) if run.finished_training else None for _, value in columns]
        rows.append(
            (
                planned.arm,
                run.config.seed,
                run.ending,
                *(None if value is None else round(value, digits) for value in values),
            )
        )
    return Table(key, title, ("arm", "seed", "run", *(name for name, _ in columns)), tuple(rows))


def under(metric: str, condition: Condition) -> Value:
    """The last value of a metric measured under a condition."""
    return lambda run: run.last(named(metric, condition))


def samples_of(condition: Condition) -> int:
    """How many training images a condition's statistics are from."""
    return int(condition[1])


def extremes(
    label: str, arm: str, x: Sequence[float], rows: Sequence[Sequence[float | None]]
) -> Line | None:
    """The median of several runs at each x, with a band from the least to the greatest.

    For spread itself: an interval of the mean would not show it. None without a run.
    """
    columns = [
        [value for row in rows if index < len(row) for value in [row[index]] if value is not None]
        for index in range(len(x))
    ]
    if not any(columns):
        return None
    low, middle, high = (
        tuple(pick(column) if column else None for column in columns) for pick in (min, median, max)
    )
    return Line(label, tuple(x), middle, low, high, arm=arm)
