"""Test scores beside those of the book's published builds: what C24 measures and draws."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median, stdev

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.parts import extremes, under
from normkit.lab.conditions import Condition, named
from normkit.lab.findings import Chart, Line, Table
from normkit.lab.runs import Run

__all__ = [
    "DENSENET",
    "LENET",
    "MOVING",
    "PLAIN",
    "POPULATION",
    "condition",
    "epochs_chart",
    "moving",
    "population",
    "published_table",
]

LENET = "LeNet with BN"
PLAIN = "LeNet without BN"
DENSENET = "DenseNet"
MOVING = "moving average"
POPULATION = "population statistics"

# Test accuracy after the last epoch over the published builds of the book.
PUBLISHED: dict[str, tuple[float | str | None, ...]] = {
    LENET: (0.571, 0.846, 0.892, 0.067, ".90–.91"),
    PLAIN: (None, None, None, 0.015, None),
    DENSENET: (0.406, 0.882, 0.918, 0.068, None),
}


def moving(run: Run) -> float | None:
    """Test accuracy after the last epoch, with the statistics remembered in training."""
    return run.last("test_accuracy")


def population(run: Run) -> float | None:
    """The same of the same weights, with population statistics."""
    return under("test_accuracy", condition(run))(run)


def condition(run: Run) -> Condition:
    """Under which population statistics the run was evaluated."""
    return run.config.evaluations[0]


def epochs_chart(evidence: Evidence, arm: str) -> Chart | None:
    """Test accuracy by epoch, both ways, with all seeds within the band."""
    runs = evidence.of(arm)
    if not runs:
        return None
    x = range(1, runs[0].config.epochs + 1)
    name = named("test_accuracy", condition(runs[0]))
    lines = [
        extremes(f"{MOVING} (median of {len(runs)})", MOVING, x,
                 [run.by_epoch("test_accuracy") for run in runs]),
        extremes(f"{POPULATION}, the same weights", POPULATION, x,
                 [run.by_epoch(name) for run in runs]),
    ]  # fmt: skip
    plain = evidence.of(PLAIN) if arm == LENET else []
    if plain:
        rows = [run.by_epoch("test_accuracy") for run in plain]
        lines.append(extremes(f"{PLAIN} (median of {len(plain)})", PLAIN, x, rows))
    least, middle, most = (value for value in PUBLISHED[arm][:3] if isinstance(value, float))
    # From the least to the greatest and back to the median: a stroke with three marks.
    builds = Line(
        f"{MOVING}, published: least, median, greatest",
        (x[-1],) * 3,
        (least, most, middle),
        role="published",
        arm=MOVING,
    )
    return Chart(
        key=f"epochs-{arm.split()[0].lower()}",
        title=f"{arm}: test accuracy after each epoch",
        x_label="epoch",
        y_label="test accuracy",
        lines=(*(line for line in lines if line), builds),
        text=(
            f"Test accuracy of {arm} after each epoch: the line is the median of the seeds, the "
            "band goes from the least to the greatest of them. "
            + "; ".join(f"{line.label}: {_range(line)}" for line in lines if line)
            + f". Published, moving average, after epoch 10: {least} to {most}, median {middle}."
        ),
        markers=True,
    )


def _range(line: Line) -> str:
    least, middle, most = line.low[-1], line.y[-1], line.high[-1]
    if least is None or middle is None or most is None:
        return "not yet measured"
    return f"last epoch {least:.3f} to {most:.3f}, median {middle:.3f}"


def published_table(evidence: Evidence) -> Table:
    """Ours beside the book's."""
    rows: list[tuple[str | float | int | None, ...]] = []
    for arm, published in PUBLISHED.items():
        runs = evidence.of(arm)
        ways = [(MOVING, moving), (POPULATION, population)]
        if arm == PLAIN:
            ways = [("no statistics", moving)]
        for label, score in ways if arm in evidence.arms else []:
            values = [value for run in runs for value in [score(run)] if value is not None]
            rows.append((f"{arm}, {label}", len(values), *_summary(values), _train(runs)))
        rows.append((f"{arm}, published", None, *published))
    columns = ("test accuracy, last epoch", "seeds", "least", "median", "greatest",
               "standard deviation", "training accuracy")  # fmt: skip
    return Table("published", "Ours and the published builds of the book", columns, tuple(rows))


def _summary(values: Sequence[float]) -> tuple[float | None, ...]:
    spread = round(stdev(values), 4) if len(values) > 1 else None
    if not values:
        return (None, None, None, None)
    return (*(round(pick(values), 4) for pick in (min, median, max)), spread)


def _train(runs: Sequence[Run]) -> str | None:
    values = [v for run in runs for v in [run.last("epoch_train_accuracy")] if v is not None]
    if not values:
        return None
    return f"{min(values):.3f}–{max(values):.3f}, mean {fmean(values):.3f}"
