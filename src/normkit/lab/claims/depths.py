"""Errors of networks of several depths: what C21 measures and draws."""

from __future__ import annotations

from collections.abc import Mapping

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.parts import GUESSING, band, seen
from normkit.lab.claims.sweeps import line_over, mean_of, percent
from normkit.lab.config import RunConfig
from normkit.lab.findings import Chart, Comparison, Line, Table
from normkit.lab.runs import Run

__all__ = [
    "PLAIN",
    "RESIDUAL",
    "depth_of",
    "depths",
    "depths_chart",
    "depths_table",
    "epochs_chart",
    "test_error",
    "training_error",
]

PLAIN, RESIDUAL = "plain", "residual"

# Error, %, by depth: on ImageNet's validation images (table 2 of the paper) and on CIFAR-10's test
# images (table 6), where no figures are printed for the plain networks; and of some 80 builds of
# the book that the article follows, which has no plain network.
PUBLISHED: dict[str, dict[str, Mapping[int, float]]] = {
    "ImageNet": {PLAIN: {18: 27.94, 34: 28.54}, RESIDUAL: {18: 27.88, 34: 25.03}},
    "CIFAR-10": {RESIDUAL: {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97}},
    "Fashion-MNIST at 96×96, d2l's builds (median)": {RESIDUAL: {18: 8.7}},
}


def depth_of(config: RunConfig) -> int:
    """How many layers a network has, as its name says."""
    return int(config.model.removeprefix("resnet"))


def depths(evidence: Evidence) -> list[int]:
    """All depths planned, the shallowest first."""
    return sorted({depth_of(planned.run.config) for planned in evidence.planned})


def training_error(run: Run) -> float | None:
    """Of the last epoch; that of guessing where the loss was not finite."""
    accuracy = seen(run)
    return None if accuracy is None else 1 - accuracy


def test_error(run: Run) -> float | None:
    """After the last epoch, with the statistics remembered."""
    accuracy = run.last("test_accuracy")
    return None if accuracy is None else 1 - accuracy


def depths_chart(
    evidence: Evidence, plain: Comparison | None, residual: Comparison | None
) -> Chart | None:
    lines = []
    for arm in (PLAIN, RESIDUAL):
        runs_at = [
            (layers, evidence.of(arm, model=f"resnet{layers}")) for layers in depths(evidence)
        ]
        line = line_over(arm, arm, runs_at, training_error, scale=100)
        if line is not None:
            lines.append(line)
    if not lines:
        return None
    title = "Training error by depth"
    if plain is not None and residual is not None:
        title += f": plain {plain.effect * 100:+.1f} points, residual {residual.effect * 100:+.1f}"
    words = "; ".join(f"{line.label} from {_ends(line)}" for line in lines)
    return Chart(
        key="depths",
        title=title,
        x_label="layers",
        y_label="training error, %",
        lines=tuple(lines),
        text=(
            f"Training error of the last epoch by depth: {words}. Bands are 95 % intervals of the "
            "mean."
        ),
        markers=True,
    )


def _ends(line: Line) -> str:
    first, last = ("unknown" if y is None else f"{y:.1f} %" for y in (line.y[0], line.y[-1]))
    return f"{first} at {line.x[0]:.0f} layers to {last} at {line.x[-1]:.0f}"


def epochs_chart(evidence: Evidence) -> Chart | None:
    lines = []
    found = depths(evidence)
    for layers in found[:: max(1, len(found) - 1)]:
        for arm in (PLAIN, RESIDUAL):
            runs = evidence.of(arm, model=f"resnet{layers}")
            if not runs:
                continue
            rows = [
                [100 * (1 - (GUESSING if each is None else each)) for each in accuracies]
                for run in runs
                for accuracies in [run.by_epoch("epoch_train_accuracy")]
            ]
            epochs = range(1, runs[0].config.epochs + 1)
            line = band(f"{arm}, {layers} layers", arm, epochs, rows)
            if line is not None:
                lines.append(line)
    if not lines:
        return None
    words = "; ".join(
        f"{line.label}: {line.y[-1]:.1f} %" for line in lines if line.y[-1] is not None
    )
    return Chart(
        key="epochs",
        title="Training error by epoch: where deep and shallow part",
        x_label="epoch",
        y_label="training error, %",
        lines=tuple(lines),
        text=f"Training error after each epoch; after the last: {words}. Bands are 95 % intervals.",
        markers=True,
    )


def depths_table(evidence: Evidence) -> Table:
    rows: list[tuple[str | float | None, ...]] = []
    found = depths(evidence)
    for arm in (PLAIN, RESIDUAL):
        for label, error in (("training", training_error), ("test", test_error)):
            ours = [mean_of(evidence.of(arm, model=f"resnet{n}"), error) for n in found]
            for layers, value in zip(found, ours, strict=True):
                rows.append((arm, layers, f"{label}, ours", percent(value)))
    for data, by_arm in PUBLISHED.items():
        for arm, by_depth in by_arm.items():
            for layers, value in by_depth.items():
                rows.append((arm, layers, f"{data}, published", value))
    return Table(
        "depths",
        "Error, %, by depth: ours (mean over seeds), and published (validation or test)",
        ("network", "layers", "error on", "%"),
        tuple(rows),
    )
