"""C16 and C17 judged on invented runs: words, charts, the published figures beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c16, normsizes
from normkit.lab.claims.claim import PRESETS, Available, Claim, Evidence
from normkit.lab.claims.registry import select
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.findings import Finding, Table
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Errors = Mapping[str, float]
FULL = Available("full", 60_000, 10_000)
CLAIMS = select(["C16", "C17"])
by_key = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)


def swept(arm: str, config: RunConfig, good: float) -> Errors:
    size = int(dict(config.norm_options)["ghost_size"] or 0)
    population = 0.25 + good * 0.1 / size
    if arm == normsizes.FROZEN:
        return {"epoch_train_accuracy": 0.15, "test_accuracy": population - good * 0.08 / size}
    found = {"epoch_train_accuracy": 0.15 + good * 0.3 / size, "test_accuracy": 0.5}
    for condition in config.final_evaluations:
        name = named("test_accuracy", condition)
        found[name] = population if condition[0] == "population" else 0.25
    return found


INVENTED: dict[str, Callable[[str, RunConfig, float], Errors]] = {
    "C16": swept,
    "C17": swept,
}


def evidence(claim: Claim, synthetic: Synthetic, good: float, seeds: int = 99) -> Evidence:
    """Runs that say what the claim says (``good`` 1), or the opposite (−1), with a little noise."""

    def values(arm: str, config: RunConfig) -> Mapping[str, Sequence[float | None]] | None:
        if config.seed >= seeds:
            return None
        rng = np.random.default_rng([config.seed, len(arm), config.batch_size])
        # Final conditions are measured after the last epoch only; by epoch they stand for it.
        epochs = config.epochs if config.evaluations or not config.final_evaluations else 1
        found: dict[str, Sequence[float | None]] = {
            name: [1 - error - float(rng.normal(0, 0.0005))] * epochs
            for name, error in INVENTED[claim.key](arm, config, good).items()
        }
        for name in ("epoch_train_loss", "test_loss"):
            found[name] = [0.5] * epochs
        return found

    return synthetic(claim, values)


def judged(claim: Claim, synthetic: Synthetic, good: float) -> Finding:
    return finding(claim, evidence(claim, synthetic, good), data="invented")


def table(found: Finding, key: str) -> Table:
    return next(each for each in found.tables if each.key == key)


def beside(found: Finding) -> dict[tuple[str, str], tuple[Any, Any]]:
    """The table of sizes: (name, size) to (ours, published)."""
    sizes = table(found, "sizes")
    by_row = {row[:2]: dict(zip(sizes.columns, row, strict=True)) for row in sizes.rows}
    return {
        (str(name), size): (by_row[name, "ours"][size], by_row[name, "published"][size])
        for name, whose in by_row
        if whose == "published"
        for size in sizes.columns[2:]
    }


@by_key
@pytest.mark.parametrize(("good", "word"), [(1.0, "supported"), (-1.0, "not supported")])
def test_words(claim: Claim, synthetic: Synthetic, good: float, word: str) -> None:
    found = judged(claim, synthetic, good)
    assert found.word == word
    deciding = [each for each in found.comparisons if "information" not in each.question]
    assert len(deciding) >= 2
    assert {each.word for each in deciding} == {word}
    assert all((each.effect > 0) == (good > 0) for each in deciding)


@by_key
def test_findings_are_complete_and_plain(
    claim: Claim, synthetic: Synthetic, check_finding: Any
) -> None:
    found = judged(claim, synthetic, 1.0)
    check_finding(claim, found)
    assert not claim.demo
    # What cannot be told apart in a table's head cannot be told apart at all.
    assert all(len(set(each.columns)) == len(each.columns) for each in found.tables)


@by_key
@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_partial_evidence_is_judged_and_said(
    claim: Claim, synthetic: Synthetic, check_partial: Any, seeds: int
) -> None:
    found = check_partial(claim, evidence(claim, synthetic, 1.0, seeds), seeds)
    assert bool(found.comparisons) == (seeds >= 2)
    assert bool(found.charts) == (seeds >= 1)


@by_key
@pytest.mark.parametrize("preset", PRESETS)
def test_every_seed_has_every_arm_in_the_same_setting(claim: Claim, preset: Any) -> None:
    arms = claim.plan(preset, FULL)
    seeds = {config.seed for _, config in arms}
    assert len(seeds) >= 5
    assert seeds == set(range(len(seeds)))  # the trials were made with others
    settings = [
        sorted(
            (arm, config.batch_size, config.norm_options)
            for arm, config in arms
            if config.seed == seed
        )
        for seed in seeds
    ]
    assert all(each == settings[0] for each in settings)


def test_c17_shares_the_runs_of_c16() -> None:
    first, second = ({config.key for _, config in c.plan("quick", FULL)} for c in CLAIMS[:2])
    assert first < second


def test_c16_needs_all_three(synthetic: Synthetic) -> None:
    claim = CLAIMS[0]

    def values(arm: str, config: RunConfig) -> Mapping[str, Sequence[float | None]]:
        # Noisy and regularising, but batch and population statistics do alike.
        errors = dict(swept(arm, config, 1.0))
        same = {name: 0.25 for name in errors if "@" in name}
        rng = np.random.default_rng([config.seed, len(arm)])
        return {name: [1 - e - rng.normal(0, 1e-3)] for name, e in (errors | same).items()}

    found = finding(claim, synthetic(claim, values), data="invented")
    assert [each.word for each in found.comparisons[:3]] == [
        "supported",
        "not supported",
        "supported",
    ]
    assert found.word == "not supported"


def test_sweeps_show_the_published_figures_in_their_places(synthetic: Synthetic) -> None:
    found = judged(CLAIMS[1], synthetic, 1.0)
    rows = beside(found)
    assert rows["test, population statistics", "2"] == (pytest.approx(30, abs=0.2), 32.5)
    assert rows["test, frozen at the end", "2"] == (pytest.approx(26, abs=0.2), 25.2)
    assert rows["test, batch statistics", "256"] == (pytest.approx(25, abs=0.2), 24.7)
    (chart,) = found.charts
    published = {line.arm: line for line in chart.lines if line.role == "published"}
    ours = {line.arm: line for line in chart.lines if line.role == "data"}
    assert set(published) == set(ours)
    line = published["test, population statistics"]
    assert (line.x[0], line.y[0], line.x[-1], line.y[-1]) == (2, 32.5, 1024, 23.7)
    assert ours["test, population statistics"].y[0] == pytest.approx(30, abs=0.2)


def test_c16_measures_each_error_with_its_statistics(synthetic: Synthetic) -> None:
    runs = evidence(CLAIMS[0], synthetic, 1.0)
    for size in (2, 256):
        for kind, error in (("training", 0.15 + 0.3 / size), ("population statistics", 0.25)):
            found = normsizes.by_seed(runs, (normsizes.BN, kind), size)
            assert len(found) == 5
            if kind == "training":
                assert found[0] == pytest.approx(error, abs=0.003)
    assert c16.less({0: 3.0, 1: 5.0}, {1: 1.0, 2: 0.0}) == {1: 4.0}
