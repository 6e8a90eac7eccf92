"""What claims draw and compute that look at several settings of several arms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.parts import band
from normkit.lab.findings import Line
from normkit.lab.runs import Run
from normkit.lab.verdicts import interval

__all__ = ["epoch_line", "line_over", "mean_of", "percent", "rows_beside"]

Value = Callable[[Run], float | None]
Row = tuple[str | float | int | None, ...]


def mean_of(runs: Sequence[Run], value: Value) -> float | None:
    """The mean of a value over the runs that have it, None where none has."""
    values = [each for run in runs for each in [value(run)] if each is not None]
    return fmean(values) if values else None


def percent(value: float | None, digits: int = 1) -> float | None:
    """A share as a table's cell, in percent.

    >>> percent(0.87654), percent(None)
    (87.7, None)
    """
    return None if value is None else round(100 * value, digits)


def rows_beside(
    name: str, ours: Sequence[float | None], published: Sequence[float | None]
) -> list[Row]:
    """Two rows of a table that has a column for each setting: ours, in percent, and the source's.

    >>> rows_beside("BN", [0.2764], [34.7])
    [('BN', 'ours', 27.6), ('BN', 'published', 34.7)]
    """
    return [(name, "ours", *map(percent, ours)), (name, "published", *published)]


def line_over(
    label: str,
    arm: str,
    runs_at: Sequence[tuple[float, Sequence[Run]]],
    value: Value,
    *,
    scale: float = 1.0,
) -> Line | None:
    """The mean of a value at each setting, with its 95 % interval; None where nothing is known.

    Args:
        runs_at: pairs (setting, the runs there).
        scale: what the values are multiplied by, 100 for percent.
    """
    x, means, lows, highs = [], [], [], []
    for setting, runs in runs_at:
        values = [scale * each for run in runs for each in [value(run)] if each is not None]
        mean, low, high = (
            interval(values) if len(values) > 1 else (values[0] if values else None, None, None)
        )
        x.append(float(setting))
        means.append(mean)
        lows.append(low)
        highs.append(high)
    if all(mean is None for mean in means):
        return None
    return Line(label, tuple(x), tuple(means), tuple(lows), tuple(highs), arm=arm)


def epoch_line(evidence: Evidence, arm: str, metric: str, label: str) -> Line | None:
    """A metric of one arm after each epoch, with the 95 % interval of the mean."""
    runs = [run for run in evidence.of(arm) if metric in run.metrics]
    if not runs:
        return None
    longest = max(len(run.metrics[metric]) for run in runs)
    epochs = tuple(float(epoch + 1) for epoch in range(longest))
    return band(label, arm, epochs, [run.by_epoch(metric) for run in runs])
