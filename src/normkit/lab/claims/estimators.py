"""Estimators of statistics, side by side on the same weights: what C15 measures and draws."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from normkit.lab.claims.claim import Evidence, Preset
from normkit.lab.claims.parts import band, samples_of
from normkit.lab.conditions import Condition, named
from normkit.lab.findings import Chart, Line, Table
from normkit.lab.runs import Run

__all__ = [
    "AT_BATCH",
    "AT_SAMPLES",
    "along",
    "charts",
    "errors",
    "excess",
    "grid",
    "jumps",
    "last",
    "last_error",
    "most",
    "published_table",
]

MOVING = "moving average"
SAMPLES = (100, 300, 1000, 3000, 10_000)
BATCHES = (2, 10, 100, 1000)
# What the rest of the grid is measured at.
AT_SAMPLES = 1000
AT_BATCH = 100

# ResNet-50 on ImageNet, error by the batch size of the estimator, as read off the source's figure.
PUBLISHED = {
    "SGD batch 32": (23.7, {2: 28.8, 10: 24.0, 100: 23.5}),
    "SGD batch 2": (35.5, {2: 34.4, 10: 32.3, 100: 32.0}),
}


def grid(preset: Preset, train_images: int) -> tuple[Condition, ...]:
    """Estimators after the last epoch: a cross through the grid in quick, all of it in full."""
    samples = sorted({min(n, train_images) for n in SAMPLES})
    whole = [(n, b) for n, b in itertools.product(samples, BATCHES) if n >= b]
    cross = [(n, b) for n, b in whole if n == AT_SAMPLES or b == AT_BATCH]
    return tuple(("population", n, b) for n, b in (cross if preset == "quick" else whole))


def errors(run: Run, condition: Condition | None = None) -> list[float]:
    """Test error by epoch, with the moving average or under a condition."""
    name = named("test_accuracy", condition) if condition else "test_accuracy"
    return [1 - value for value in run.by_epoch(name) if value is not None]


def along(run: Run) -> Condition:
    """Under which population statistics the run was evaluated after each epoch."""
    return run.config.evaluations[0]


def jumps(values: Sequence[float]) -> float | None:
    """How far values are from one to the next, on average.

    >>> jumps([0.0, 1.0, 0.0])
    1.0
    """
    return fmean(abs(b - a) for a, b in itertools.pairwise(values)) if len(values) > 1 else None


def excess(run: Run) -> float | None:
    """Error with the moving average less that with population statistics, over the epochs."""
    pairs = list(zip(errors(run), errors(run, along(run)), strict=False))
    return fmean(a - b for a, b in pairs) if pairs else None


def last_error(run: Run, samples: int, batch: int) -> float | None:
    """Test error after the last epoch with statistics estimated so; None if it was not measured."""
    found = errors(run, ("population", samples, batch))
    return found[-1] if found else None


def most(run: Run) -> int:
    """The largest number of images that statistics were estimated from."""
    return max(samples_of(condition) for condition in run.config.final_evaluations)


def last(values: Sequence[float]) -> float | None:
    """The last of the values, None if there is none."""
    return values[-1] if values else None


def charts(evidence: Evidence) -> list[Chart]:
    """The error by epoch, by the number of images and by the batch size of the estimator."""
    drawn = (_epochs(evidence), _by_samples(evidence), _by_batch(evidence))
    return [chart for chart in drawn if chart]


def _epochs(evidence: Evidence) -> Chart | None:
    lines = []
    for arm in evidence.arms:
        runs = evidence.of(arm)
        for label, rows in (
            (MOVING, [errors(run) for run in runs]),
            ("population statistics", [errors(run, along(run)) for run in runs]),
        ):
            x = range(1, max(map(len, rows), default=0) + 1)
            line = band(f"{arm}, {label}", f"{arm}, {label}", x, rows)
            if line is not None:
                lines.append(line)
    return _chart(
        lines,
        key="epochs",
        title="Test error after each epoch",
        x_label="epoch",
        text="Test error after each epoch, with the moving average and, the same weights, with "
        "population statistics, for both batch sizes of SGD. ",
    )


def _by_samples(evidence: Evidence) -> Chart | None:
    lines = []
    for arm in evidence.arms:
        line = _sweep(evidence, arm, [(n, AT_BATCH) for n in SAMPLES], by=0)
        if line is not None and len(line.x) > 1:
            lines.append(line)
    return _chart(
        lines,
        key="samples",
        title="Test error by the number of images behind the statistics",
        x_label="training images",
        text="Test error after the last epoch by how many training images the population "
        f"statistics were estimated from, in batches of {AT_BATCH}. ",
        x_log=True,
    )


def _by_batch(evidence: Evidence) -> Chart | None:
    lines = []
    for arm in evidence.arms:
        line = _sweep(evidence, arm, [(AT_SAMPLES, batch) for batch in BATCHES], by=1)
        if line is None:
            continue
        kept = band(
            f"{arm}, {MOVING}",
            f"{arm}, {MOVING}",
            (line.x[0], line.x[-1]),
            [[last, last] for run in evidence.of(arm) for last in errors(run)[-1:]],
        )
        lines += [line, *([kept] if kept else [])]
    if lines:
        _, by_batch = PUBLISHED["SGD batch 32"]
        lines.append(
            Line(
                "ResNet-50 on ImageNet, SGD batch 32, published",
                tuple(by_batch),
                tuple(round(value / 100, 3) for value in by_batch.values()),
                role="published",
            )
        )
    return _chart(
        lines,
        key="batches",
        title=f"Test error by the batch size of the estimator, {AT_SAMPLES:,} images",
        x_label="images in a batch of the estimator",
        text=f"Test error after the last epoch with statistics of {AT_SAMPLES:,} training images "
        "estimated in batches of 2 to 1,000, the moving average beside them. ",
        x_log=True,
    )


def _sweep(evidence: Evidence, arm: str, points: Sequence[tuple[int, int]], by: int) -> Line | None:
    """Last errors of an arm over these (samples, batch size), as far as they were measured."""
    runs = evidence.of(arm)
    if runs:
        points = sorted({(min(n, most(runs[0])), batch) for n, batch in points})
    rows = [[last_error(run, *point) for point in points] for run in runs]
    there = [i for i in range(len(points)) if any(row[i] is not None for row in rows)]
    fixed = f"batches of {points[0][1]}" if by == 0 else f"{points[0][0]:,} images"
    label = f"{arm}, population statistics"
    return band(
        f"{label}, {fixed}",
        label,
        [points[i][by] for i in there],
        [[row[i] for i in there] for row in rows],
    )


def _chart(lines: Sequence[Line], *, text: str, **fields: Any) -> Chart | None:
    if not lines:
        return None
    ends = "; ".join(
        f"{line.label}: {line.y[0]:.3f} to {line.y[-1]:.3f}"
        for line in lines
        if line.y[0] is not None and line.y[-1] is not None
    )
    return Chart(
        y_label="test error",
        lines=tuple(lines),
        text=f"{text}{ends}. The band is the 95 % interval of the mean.",
        markers=True,
        **fields,
    )


def published_table(evidence: Evidence) -> Table:
    """Errors in per cent, ours and the source's, by the batch size of the estimator."""
    rows: list[tuple[str | float | int | None, ...]] = []
    for arm in evidence.arms:
        runs = evidence.of(arm)
        columns = [[last for run in runs for last in errors(run)[-1:]]]
        for batch in BATCHES:
            found = [last_error(run, AT_SAMPLES, batch) for run in runs]
            columns.append([value for value in found if value is not None])
        means = (round(100 * fmean(values), 2) if values else None for values in columns)
        rows.append((arm, *means))
    for label, (error, by_batch) in PUBLISHED.items():
        published = (by_batch.get(batch) for batch in BATCHES)
        rows.append((f"published, ImageNet, {label}", error, *published))
    columns_named = ("network", MOVING, *(f"batches of {batch}" for batch in BATCHES))
    return Table("estimators", f"Test error in % after the last epoch: the moving average, and "
                 f"statistics of {AT_SAMPLES:,} images", columns_named, tuple(rows))  # fmt: skip
