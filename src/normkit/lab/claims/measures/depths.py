"""Errors of networks by their depth, plain and residual."""

from __future__ import annotations

from collections.abc import Mapping

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study import (
    NUMBER,
    PERCENT,
    TEST,
    TRAIN,
    Measure,
    Quantity,
    Series,
    error,
    mean_of,
    settings_of,
)
from normkit.lab.findings import Table
from normkit.lab.runs import Run

__all__ = [
    "ERROR",
    "LAYERS",
    "PLAIN",
    "PUBLISHED",
    "RESIDUAL",
    "TEST_ERROR",
    "by_epoch",
    "depths_table",
    "layers",
    "rise",
]

PLAIN, RESIDUAL = "plain", "residual"
ERROR, TEST_ERROR = error(TRAIN, "training error"), error(TEST, "test error")
# Error, %: the paper's on ImageNet's validation and CIFAR-10's test images, where it prints none
# for plain networks; and the median of d2l's builds.
PUBLISHED: Mapping[tuple[str, str], Mapping[int, float]] = {
    ("ImageNet", PLAIN): {18: 27.94, 34: 28.54},
    ("ImageNet", RESIDUAL): {18: 27.88, 34: 25.03},
    ("CIFAR-10", RESIDUAL): {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97},
    ("Fashion-MNIST at 96×96, d2l's builds (median)", RESIDUAL): {18: 8.7},
}


def layers(run: Run) -> int:
    """Return the number of layers that a network has in its name."""
    return int(run.config.model.removeprefix("resnet"))


LAYERS = Measure("layers", layers, NUMBER)
depths = settings_of(layers)


def rise(arm: str, measure: Measure = ERROR) -> Quantity:
    """Subtract an arm's error at the smallest depth from that at the greatest."""

    def at(end: int) -> Quantity:
        def there(evidence: Evidence) -> Quantity:
            return measure.at(arm, model=f"resnet{depths(evidence)[end]}")

        return Quantity(lambda e: there(e).by_seed(e), PERCENT, lambda e: there(e).images(e))

    return at(-1) - at(0)


def by_epoch(evidence: Evidence) -> list[Series]:
    """The training error of the shallowest and the deepest networks."""
    ends = (depths(evidence)[0], depths(evidence)[-1])
    return [
        Series(arm, ERROR.curve, f"{arm}, {n} layers", where={"model": f"resnet{n}"})
        for n in ends
        for arm in (PLAIN, RESIDUAL)
    ]


def depths_table(evidence: Evidence) -> Table:
    """Our errors, and the published ones, by depth."""
    rows: list[tuple[str | float | None, ...]] = []
    for arm in (PLAIN, RESIDUAL):
        for name, measure in (("training", ERROR), ("test", TEST_ERROR)):
            for n in depths(evidence):
                mean = mean_of(evidence.of(arm, model=f"resnet{n}"), measure)
                rows.append((arm, n, f"{name}, ours", PERCENT.cell(mean, 1)))
    for (data, arm), errors in PUBLISHED.items():
        rows += [(arm, n, f"{data}, published", value) for n, value in errors.items()]
    title = "Error, %, by depth: ours (mean over seeds), and published (validation or test)"
    return Table("depths", title, ("network", "layers", "error on", "%"), tuple(rows))
