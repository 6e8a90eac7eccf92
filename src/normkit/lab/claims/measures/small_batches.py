"""Four normalizers at five batch sizes: runs and errors of C20."""

from __future__ import annotations

from typing import Any

from normkit.lab.claims.claim import Arms, Available, Preset
from normkit.lab.claims.study import (
    NARROW_RESNET,
    NUMBER,
    TEST,
    Measure,
    Plan,
    Quantity,
    Scale,
    error,
    final,
    last,
    population,
)
from normkit.lab.runs import Run

BATCH_SIZES = (32, 16, 8, 4, 2)
LARGE, SMALL = BATCH_SIZES[0], BATCH_SIZES[-1]
RATE = 0.04 / 32  # per image of a batch
BN, OTHERS = "BN", {"GN": "group", "LN": "layer", "IN": "instance"}
PUBLISHED = {
    BN: dict(zip(BATCH_SIZES, (23.6, 23.7, 24.8, 27.3, 34.7), strict=True)),
    "GN": dict(zip(BATCH_SIZES, (24.1, 24.2, 24.0, 24.2, 24.1), strict=True)),
    "LN": {LARGE: 25.3},
    "IN": {LARGE: 28.4},
}


def size_of(run: Run) -> int:
    """The run's batch size."""
    return run.config.batch_size


ERROR = error(TEST, "test error")
REPAIRED = error(last("test_accuracy", "", under=final("population")), "population statistics")
BATCH_SIZE = Measure("batch size", size_of, NUMBER)
OF_BATCH = error(last("test_accuracy", "", under=final("batch")), "batch statistics")
LENET = {"model": "lenet5", "model_options": (("norm_at", "conv"),), "size": 16}
BN_LIT, GN_LIT = "BN, lit", "GN, lit"


def rise(arm: str, measure: Measure = ERROR) -> Quantity:
    """Measure how much an arm's test error rises from the largest batch to the smallest."""
    return measure.at(arm, batch_size=SMALL) - measure.at(arm, batch_size=LARGE)


def at_size(size: int, **fields: Any) -> dict[str, Any]:
    """The fields of the runs at a batch size."""
    return {"batch_size": size, "lr": RATE * size, "loss_every": 160 // size, **fields}


def at_size_of_bn(size: int) -> dict[str, Any]:
    """The same, and evaluated with population statistics and with those of such batches."""
    return at_size(
        size, final_evaluations=lambda at: (("batch", size), *population(10_000, 256)(at))
    )


def _plan(arms: dict[str, dict[str, Any]], *settings: dict[str, Any], quick: int = 5) -> Plan:
    return Plan(
        scales={
            "quick": Scale(seeds=quick, train=4_000, test=4_000, epochs=4),
            "full": Scale(seeds=5, train=4_000, test=4_000, epochs=4),
            "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=30),
        },
        arms=arms,
        base={"momentum": 0.9, "schedule": "cosine"},
        presets={"quick": LENET, "full": LENET, "paper": NARROW_RESNET["paper"]},
        settings=settings,
    )


LIT = {"data": "fashion-mnist-lit"}
PLANS = (
    _plan({BN: {"norm": "batch"}}, *map(at_size_of_bn, BATCH_SIZES)),
    _plan({arm: {"norm": norm} for arm, norm in OTHERS.items()}, *map(at_size, BATCH_SIZES)),
    _plan({BN_LIT: {"norm": "batch"} | LIT}, *map(at_size_of_bn, (LARGE, SMALL)), quick=2),
    _plan({GN_LIT: {"norm": "group"} | LIT}, *map(at_size, (LARGE, SMALL)), quick=2),
)


def plan(preset: Preset, available: Available) -> Arms:
    """All runs, one plan after the other."""
    return [run for each in PLANS for run in each(preset, available)]
