"""C16 to C20 judged on invented runs: words, charts, the published figures beside ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c16, c18, c19, c20, normsizes
from normkit.lab.claims.claim import PRESETS, Available, Claim, Evidence
from normkit.lab.claims.registry import select
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.findings import Finding, Table
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Errors = Mapping[str, float]
FULL = Available("full", 60_000, 10_000)
CLAIMS = select(["C16", "C17", "C18", "C19", "C20"])
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


def phased(arm: str, config: RunConfig, good: float) -> Errors:
    found = {"test_accuracy": 0.3}
    for condition in config.evaluations:
        population = str(condition[0]).removeprefix("domains-")
        agrees = population == c18.populations(arm)[0]
        found[named("test_accuracy", condition)] = 0.2 if agrees else 0.2 + 0.2 * good
    return found


def composed(arm: str, config: RunConfig, good: float) -> Errors:
    leaks = good * (arm == c19.LEAK)
    found = {"epoch_train_accuracy": 0.15 - 0.05 * leaks, "test_accuracy": 0.2 + 0.1 * leaks}
    return found | {named("test_accuracy", c): 0.4 for c in config.final_evaluations}


def shrunk(arm: str, config: RunConfig, good: float) -> Errors:
    error = 0.3 + good * (arm == c20.BN) * 0.2 / config.batch_size
    found = {"epoch_train_accuracy": error, "test_accuracy": error}
    return found | {named("test_accuracy", c): error - 0.05 for c in config.final_evaluations}


INVENTED: dict[str, Callable[[str, RunConfig, float], Errors]] = {
    "C16": swept,
    "C17": swept,
    "C18": phased,
    "C19": composed,
    "C20": shrunk,
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


def test_c18_has_every_row_of_the_published_table(synthetic: Synthetic) -> None:
    found = judged(CLAIMS[2], synthetic, 1.0)
    rows = {row[1:4]: row[4:] for row in table(found, "ways").rows}
    assert [published for _, published in rows.values()] == [
        39.1, 2.1, 34.1, 39.1, 35.5, 39.2, 39.5, 38.7,
    ]  # fmt: skip
    assert rows["shared", "specific", "shared"][0] == pytest.approx(60, abs=0.3)
    assert rows["specific", "specific", "shared"][0] == pytest.approx(80, abs=0.3)
    assert rows["none", "none", "none"][0] == pytest.approx(70, abs=0.3)
    labels = [line.label for line in found.charts[0].lines]
    assert labels[:2] == ["shared / shared / shared", "shared / specific / shared"]
    assert labels[2] == "specific / specific / shared"  # the first of an arm is drawn solid
    assert len(labels) == 8


def test_c19_shows_what_the_leak_looks_like(synthetic: Synthetic) -> None:
    found = judged(CLAIMS[3], synthetic, 1.0)
    rows = table(found, "published").rows
    assert [row[4] for row in rows] == [40.1, 41.3, None, 41.6, 41.7, 41.4, 41.1]
    assert rows[0][3] == pytest.approx(70, abs=0.2)
    assert rows[1][3] == pytest.approx(60, abs=0.2)
    assert rows[0][2] == pytest.approx(90, abs=0.2)


def test_c19_needs_training_to_look_good(synthetic: Synthetic) -> None:
    claim = CLAIMS[3]

    def values(arm: str, config: RunConfig) -> Mapping[str, Sequence[float | None]]:
        errors = dict(composed(arm, config, 1.0)) | {"epoch_train_accuracy": 0.2}
        rng = np.random.default_rng([config.seed, len(arm)])
        return {name: [1 - e - rng.normal(0, 1e-4)] for name, e in errors.items()}

    found = finding(claim, synthetic(claim, values), data="invented")
    assert found.word == "not supported"
    assert [each.word for each in found.comparisons[1:4]] == ["supported"] * 3


def test_c20_compares_rises_and_not_errors(synthetic: Synthetic) -> None:
    claim = CLAIMS[4]

    def values(arm: str, config: RunConfig) -> Mapping[str, Sequence[float | None]]:
        # GroupNorm is worse everywhere and loses as much as BN.
        rises = arm in (c20.BN, "GN")
        error = 0.3 + rises * 0.2 / config.batch_size + 0.1 * (arm == "GN")
        rng = np.random.default_rng([config.seed, len(arm), config.batch_size])
        return {"test_accuracy": [1 - error - float(rng.normal(0, 5e-4))]}

    found = finding(claim, synthetic(claim, values), data="invented")
    assert [each.word for each in found.comparisons if each.decides] == [
        "supported",
        "not supported",
        "supported",
        "supported",
    ]
    assert found.word == "not supported"


def test_c20_prints_the_published_figures_beside_ours(synthetic: Synthetic) -> None:
    found = judged(CLAIMS[4], synthetic, 1.0)
    rows = beside(found)
    assert rows["BN", "2"] == (pytest.approx(40, abs=0.2), 34.7)
    assert rows["GN", "2"] == (pytest.approx(30, abs=0.2), 24.1)
    assert rows["LN", "32"][1] == 25.3
    assert rows["LN", "2"][1] is None
    last = table(found, "sizes").rows[-1]
    assert last[:2] == ("BN, population statistics", "ours")
    assert last[-1] == pytest.approx(35, abs=0.2)


def test_c20_scales_the_rate_with_the_batch() -> None:
    rates = {config.lr / config.batch_size for _, config in CLAIMS[4].plan("full", FULL)}
    assert len(rates) == 1


def test_an_arm_that_never_learned_is_no_evidence(synthetic: Synthetic) -> None:
    """No better than guessing at every batch size, GroupNorm loses nothing."""
    claim = CLAIMS[4]

    def values(arm: str, config: RunConfig) -> Mapping[str, Sequence[float | None]]:
        error = 0.9 if arm == "GN" else 0.2 + (arm == c20.BN) * 0.2 / config.batch_size
        rng = np.random.default_rng([config.seed, len(arm), config.batch_size])
        return {"test_accuracy": [1 - error - float(rng.normal(0, 5e-4))]}

    evidence = synthetic(claim, values)
    assert finding(claim, evidence, data="invented").word == "supported"
    dead = dataclasses.replace(
        evidence,
        planned=tuple(
            dataclasses.replace(each, run=dataclasses.replace(each.run, status="diverged"))
            if each.arm == "GN"
            else each
            for each in evidence.planned
        ),
    )
    found = finding(claim, dead, data="invented")
    assert found.word == "undecided"
    assert [each.word for each in found.comparisons if each.decides] == ["supported"] * 3
    assert not found.stale


def test_runs_of_another_versions_arms_say_what_to_do(synthetic: Synthetic) -> None:
    claim = CLAIMS[4]
    evidence = synthetic(claim, lambda arm, config: {"test_accuracy": [0.5]})
    renamed = tuple(dataclasses.replace(each, arm=f"old {each.arm}") for each in evidence.planned)
    found = finding(claim, dataclasses.replace(evidence, planned=renamed), data="invented")
    assert found.stale
    assert f"normkit lab run {claim.key} --preset" in found.sentence
