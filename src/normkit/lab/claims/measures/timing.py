"""Time of a training step by kind of layer, with PyTorch's layers and normkit's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.study import NUMBER, PERCENT, Dots, Measure, Quantity, Seeds, Unit, mean_of
from normkit.lab.findings import Table
from normkit.lab.models import TITLES
from normkit.lab.runs import Run

__all__ = [
    "MORE",
    "SAVED",
    "SHARE",
    "by_repetition",
    "parts_chart",
    "repetitions_table",
    "times_table",
]

SIDES = {"torch": "PyTorch's layers", "ours": "normkit's layers"}
KINDS = {"norm": "normalization", "convolution": "convolution", "rest": "the rest"}
MS = Unit("ms", 1e3, digits=2, least=0.0)


def seconds(run: Run, side: str, kind: str) -> float:
    """Sum the seconds of a kind of layer: forward, backward and, of the rest, the update."""
    parts = ("forward", "backward", "update")
    return sum(run.last(f"{side}_{kind}_{part}") or 0.0 for part in parts)


def share(side: str, kind: str) -> Measure:
    """Measure a kind of layer's share of the step."""

    def read(run: Run) -> float | None:
        step = run.last(f"{side}_step")
        return seconds(run, side, kind) / step if step else None

    return Measure(f"{KINDS[kind]}, {SIDES[side]}", read)


def _saved(run: Run) -> float | None:
    theirs, ours = run.last("torch_step"), run.last("ours_step")
    return 1 - ours / theirs if theirs and ours is not None else None


MORE = share("torch", "norm").minus(share("torch", "convolution"), "BN less convolution")
"""The share of a step in PyTorch's batch normalization less that in convolution."""

SHARE = share("torch", "norm")
"""The share of PyTorch's step that would go if batch normalization took no time."""

SAVED = Measure("saved", _saved)
"""The share of PyTorch's step that goes away with normkit's layers."""


def by_repetition(measure: Measure) -> Quantity:
    """The mean over the networks, for each repetition that has them all."""

    def by_seed(evidence: Evidence) -> Mapping[int, float]:
        read = [measure.at(arm).by_seed(evidence) for arm in evidence.arms]
        return {
            seed: fmean(each[seed] for each in read)
            for seed in evidence.seeds
            if all(seed in each for each in read)
        }

    return Quantity(by_seed, measure.unit)


def parts_chart(arm: str) -> Dots:
    """Draw the time of a network's step by kind of layer, for both sides."""

    def part(side: str, kind: str) -> Quantity:
        return Measure("", lambda run: seconds(run, side, kind), MS).at(arm)

    return Dots(
        f"parts-{arm}",
        f"A training step of {TITLES[arm]}, by kind of layer",
        "kind of layer",
        "time in a step",
        {
            layers: {word: part(side, kind) for kind, word in KINDS.items()}
            for side, layers in SIDES.items()
        },
        more="normkit's normalization includes the activation.",
    )


def _mean(runs: Sequence[Run], metric: str) -> float:
    return fmean(run.last(metric) or 0.0 for run in runs)


def times_table(evidence: Evidence) -> Table:
    """Mean milliseconds by network, layers, kind and direction."""
    rows = []
    for arm in evidence.arms:
        runs = evidence.of(arm)
        for side, layers in SIDES.items() if runs else ():
            for kind, word in KINDS.items():
                ways = (_mean(runs, f"{side}_{kind}_{way}") for way in ("forward", "backward"))
                part = PERCENT.cell(mean_of(runs, share(side, kind)), 1)
                rows.append((TITLES[arm], layers, word, *map(MS.cell, ways), part))
    return Table(
        "times",
        "Where a training step goes (the rest includes loss and update; normkit's normalization "
        "includes the activation)",
        ("network", "layers", "part", "forward, ms", "backward, ms", "% of the step"),
        tuple(rows),
    )


repetitions_table = Seeds(
    (
        Measure("repetition", lambda run: run.config.seed + 1, NUMBER),
        Measure("PyTorch's step", lambda run: run.last("torch_step"), MS),
        Measure("normkit's step", lambda run: run.last("ours_step"), MS),
        MORE,
        SAVED,
    ),
    "Repetition by repetition",
    arms=TITLES,
)
