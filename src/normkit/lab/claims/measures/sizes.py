"""Accuracy, parameters and time of networks of several sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from statistics import median
from typing import Any

from normkit.lab.building import network_of, outline
from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study import (
    PERCENT,
    At,
    Dots,
    Measure,
    Unit,
    final,
    last,
    mean_of,
)
from normkit.lab.claims.study.units import UNKNOWN
from normkit.lab.config import RunConfig
from normkit.lab.findings import Chart, Table
from normkit.lab.runs import Run

__all__ = [
    "CUT",
    "DENSENET",
    "HALF",
    "MOVING",
    "POPULATION",
    "PUBLISHED",
    "RESNET",
    "SECONDS",
    "SOURCE",
    "WIDE",
    "WIDTHS",
    "by_parameters",
    "counted",
    "networks_table",
    "parameters",
    "times",
]

RESNET, DENSENET, CUT = "ResNet-18", "DenseNet", "ResNet-18, cut"
HALF, WIDE = "ResNet-18, half as wide", "DenseNet, twice as wide"
# Test accuracy, %, with the moving average after epoch 10, at 96×96 pixels: least, median and
# greatest of the published builds; and how many parameters their networks have.
PUBLISHED = {RESNET: (81.4, 91.3, 92.7), DENSENET: (40.6, 88.2, 91.8)}
SOURCE = {RESNET: 11_175_370, DENSENET: 757_322}


def _widths(small: Any, paper: Any = ()) -> Callable[[At], Any]:
    return lambda at: paper if at.preset == "paper" else small


WIDTHS = {
    RESNET: _widths((("width", 8),)),
    DENSENET: _widths((("growth", 4), ("stem", 8))),
    CUT: _widths((("width", 2),), (("width", 16),)),
    HALF: _widths((("width", 4),)),
    WIDE: _widths((("growth", 8), ("stem", 16))),
}


def _epoch_seconds(run: Run) -> float | None:
    values = [value for value in run.by_epoch("epoch_seconds") if value is not None]
    return median(values) if values else None


POPULATION = last("test_accuracy", "population statistics", under=final("population"))
MOVING = last("test_accuracy", "moving average")
SECONDS = Measure("median time of an epoch", _epoch_seconds, Unit("s"))


def parameters(config: RunConfig) -> int:
    """Count the parameters of a run's model."""
    return _count(network_of(config))


@functools.cache
def _count(config: RunConfig) -> int:
    return sum(parameter.numel() for parameter in outline(config).parameters())


def _parameters(evidence: Evidence) -> dict[str, int]:
    """Return the number of parameters of each arm."""
    return {planned.arm: parameters(planned.run.config) for planned in evidence.planned}


def counted(arm: str) -> Callable[[Evidence], str]:
    """An arm's number of parameters, for a sentence."""
    return lambda evidence: f"{_parameters(evidence)[arm]:,}"


def times(evidence: Evidence) -> str:
    """Return the duration of DenseNet's epochs over that of ResNet-18's."""
    dense, res = (SECONDS.at(arm).shown(evidence) for arm in (DENSENET, RESNET))
    if not dense or not res:
        return UNKNOWN
    return f"{median(dense) / median(res):.1f} times"


def by_parameters(evidence: Evidence) -> Chart | None:
    """Test accuracy of each network, the one with most parameters first."""
    rows = {arm: f"{arm}: {count:,}" for arm, count in _parameters(evidence).items()}
    counts = " and ".join(f"{arm} {count:,}" for arm, count in SOURCE.items())
    draw = Dots(
        "parameters",
        "Test accuracy with population statistics, from many parameters (top) to few",
        "network: parameters",
        "test accuracy",
        {arm: {row: POPULATION.at(arm)} for arm, row in rows.items()},
        {arm: {rows[arm]: middle} for arm, (_, middle, _) in PUBLISHED.items() if arm in rows},
        more="Published: the median of the builds, of networks eight times as wide (parameters: "
        f"{counts}) at 96×96 pixels, with the moving average.",
    )
    return draw(evidence)


def networks_table(evidence: Evidence) -> Table:
    """Accuracy, parameters and time, ours and published."""
    rows: list[tuple[str | float | None, ...]] = []
    for arm, count in _parameters(evidence).items():
        runs = evidence.of(arm)
        accuracies = (PERCENT.cell(mean_of(runs, each)) for each in (POPULATION, MOVING))
        seconds = SECONDS.at(arm).shown(evidence)
        each = round(1000 * median(seconds) / runs[0].config.train_images, 2) if seconds else None
        rows.append((f"{arm}, ours", count, *accuracies, each))
    for arm, (_, middle, _) in PUBLISHED.items():
        rows.append((f"{arm}, published (median)", SOURCE[arm], None, middle, None))
    columns = ("network", "parameters", "test accuracy, population statistics, %",
               "test accuracy, moving average, %",
               "ms of an epoch per training image")  # fmt: skip
    title = "Accuracy, parameters and time: ours (mean over seeds; median time), and published"
    return Table("networks", title, columns, tuple(rows))
