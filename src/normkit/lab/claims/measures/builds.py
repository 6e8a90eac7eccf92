"""Runs of the book's networks, and their test scores beside those of its published builds."""

from __future__ import annotations

from statistics import median

from normkit.lab.claims.claim import Arms, Available, Evidence, Preset
from normkit.lab.claims.measures.spread import deviation
from normkit.lab.claims.study import (
    PERCENT,
    POINTS,
    TEST,
    Curves,
    Plan,
    Scale,
    Series,
    last,
    population,
    values_of,
    while_training,
)
from normkit.lab.findings import Line, Table

__all__ = [
    "DENSENET",
    "DROPPED",
    "LENET",
    "PLAIN",
    "PUBLISHED",
    "RECALIBRATED",
    "TRAINED",
    "chart",
    "deviations",
    "plan",
    "table",
]

LENET, PLAIN, DENSENET = "LeNet with BN", "LeNet without BN", "DenseNet"
DROPPED = "LeNet with BN, last batch dropped"
MOVING, POPULATION = "moving average", "population statistics"
BOOK = {
    "model": "lenet5",
    "act": "sigmoid",
    "model_options": (("padding", 0), ("pool", "avg"), ("init", "xavier")),
    "batch_size": 256,
}
SMALL = {"model_options": (("growth", 8), ("stem", 16))}
EVALUATED = {"norm": "batch", "batch_size": 256, "evaluations": population(10_000, 256)}


def _scales(quick: int, full: int, train: int = 60_000, test: int = 10_000) -> dict[Preset, Scale]:
    return {
        "quick": Scale(quick, train, test, epochs=10),
        "full": Scale(full, train, test, epochs=10),
        "paper": Scale(85, 60_000, 10_000, epochs=10),
    }


TOUR = Scale(6, 10_000, 2_000, epochs=4)  # with a last batch of 16
PLANS = (
    Plan(
        _scales(10, 10),
        {
            LENET: {**EVALUATED, "lr": 1.0, "drop_last": False},
            DROPPED: {**EVALUATED, "lr": 1.0},
        },
        BOOK,
    ).touring(TOUR, {"evaluate_every": 2}),
    Plan(_scales(0, 2), {PLAIN: {"norm": "none", "lr": 0.9, "drop_last": False}}, BOOK),
    Plan(
        _scales(0, 4, 3_000, 2_000),
        {DENSENET: {**EVALUATED, "lr": 0.1, "drop_last": False}},
        {"model": "densenet"},
        {"quick": SMALL, "full": SMALL, "paper": {"size": 96}},
    ),
)


def plan(preset: Preset, available: Available) -> Arms:
    """Return the runs of the book's LeNet with BN and without, and of the small DenseNet."""
    return [run for each in PLANS for run in each(preset, available)]


RECALIBRATED = last("test_accuracy", POPULATION, under=while_training)
TRAINED = last("epoch_train_accuracy", "training accuracy")
PUBLISHED: dict[str, tuple[float | None, ...]] = {
    LENET: (57.1, 84.6, 89.2, 6.7),
    DROPPED: (None, None, None, None),
    PLAIN: (None, None, None, 1.5),
    DENSENET: (40.6, 88.2, 91.8, 6.8),
}
"""Test accuracy in % after the last epoch over the book's builds: least, median, greatest, standard
deviation."""


def deviations(evidence: Evidence) -> str:
    """The standard deviation with both kinds of statistics."""
    both = (deviation(evidence.of(LENET), measure) for measure in (TEST, RECALIBRATED))
    return " to ".join(POINTS.text(each, 1) for each in both)


def chart(arm: str) -> Curves:
    """Test accuracy by epoch, both ways, with the book's builds beside the last one."""
    least, middle, greatest = (float(each or 0) for each in PUBLISHED[arm][:3])
    series = [Series(arm, TEST.curve, MOVING), Series(arm, RECALIBRATED.curve, POPULATION)]
    if arm == LENET:
        series += [Series(DROPPED, TEST.curve, "moving average, last batch dropped")]
        series.append(Series(PLAIN, TEST.curve))
    return Curves(
        f"epochs-{arm.split()[0].lower()}",
        f"{arm}: test accuracy after each epoch",
        "epoch",
        "test accuracy",
        PERCENT,
        series=series,
        band="range",
        # From the least to the greatest and back to the median: a stroke with three marks.
        extra=[
            Line(
                MOVING, (10.0,) * 3, (least, greatest, middle), role="published", arm=MOVING,
                note="least, median, greatest",
            )
        ],
    )  # fmt: skip


def table(evidence: Evidence) -> Table:
    """Ours beside the published builds."""
    rows: list[tuple[str | float | None, ...]] = []
    for arm, published in PUBLISHED.items():
        ways = {"no statistics": TEST} if arm == PLAIN else {MOVING: TEST, POPULATION: RECALIBRATED}
        runs = evidence.of(arm)
        trained = values_of(runs, TRAINED)
        for label, measure in ways.items() if arm in evidence.arms else ():
            values = values_of(runs, measure)
            picks = [pick(values) if values else None for pick in (min, median, max)]
            spread = deviation(runs, measure)
            span = f"{min(trained):.1%}–{max(trained):.1%}".replace("%", "") if trained else None
            cells = (PERCENT.cell(each) for each in (*picks, spread))
            rows.append((f"{arm}, {label}", len(values), *cells, span))
        if published[-1] is not None:
            span = "90–91" if arm == LENET else None
            rows.append((f"{arm}, published", None, *published, span))
    columns = ("test accuracy after the last epoch, %", "seeds", "least", "median", "greatest",
               "standard deviation", "training accuracy")  # fmt: skip
    return Table("published", "Ours and the published builds of the book", columns, tuple(rows))
