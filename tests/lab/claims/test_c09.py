"""C9 on invented runs: optimizers that work over ranges of rates of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c03, c09, rates
from normkit.lab.claims.claim import PRESETS, Available, Evidence, Preset
from normkit.lab.claims.parts import WITH
from normkit.lab.claims.rates import ADADELTA, RMSPROP, SGD
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]
FULL = Available("full", 60_000, 10_000)
# Five seeds: the quick preset's three cannot tell ranges apart on so coarse a grid.
CLAIM = dataclasses.replace(c09.CLAIM, plan=lambda _, available: c09.plan("full", available))
# The rates at which each works; between them all is alike, beyond them it learns nothing.
AS_CLAIMED = {SGD: (0.1, 1.0), ADADELTA: (0.2, 20.0), RMSPROP: (5e-4, 5e-2)}


def ranges(of: Mapping[str, tuple[float, float]]) -> Any:
    def values(arm: str, config: RunConfig) -> Values:
        rng = np.random.default_rng([config.seed, int(1e6 * config.lr), len(arm)])
        low, high = of[arm]
        works = low * 0.99 <= config.lr <= high * 1.01
        accuracy = (0.85 if works else 0.15) + float(rng.normal(0, 0.003))
        return {
            "epoch_train_accuracy": [accuracy] * config.epochs,
            "test_accuracy": [accuracy - 0.05] * config.epochs,
            "epoch_train_loss": [0.4 if works else 2.25] * config.epochs,
        }

    return values


def test_supported_where_all_parts_hold(synthetic: Synthetic, check_finding: Any) -> None:
    found = finding(CLAIM, synthetic(CLAIM, ranges(AS_CLAIMED)), data="invented")
    check_finding(CLAIM, found)
    assert found.word == "supported"
    larger, unbounded, adadelta, rmsprop, test, *far = found.comparisons
    assert larger.effect == pytest.approx(0.05, abs=0.01)
    assert unbounded.effect == pytest.approx(0.7, abs=0.01)
    assert adadelta.effect == pytest.approx(1.0)  # two decades less one
    assert rmsprop.effect == pytest.approx(1.0)
    assert test.effect == pytest.approx(0, abs=0.01)
    # At fifty times the customary rate, 50 and 0.05 and SGD's 5, only RMSProp still works.
    assert [each.effect for each in far] == pytest.approx([0.0, 0.7], abs=0.01)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({SGD: (0.05, 0.2)}, ["not supported", "not supported", "supported", "supported"]),
        ({SGD: (0.1, 20.0)}, ["supported", "not supported", None, "not supported"]),
        ({RMSPROP: (5e-4, 2e-3)}, ["supported", "supported", "supported", "not supported"]),
        ({ADADELTA: (1.0, 1.0)}, ["supported", "supported", "not supported", "supported"]),
        # Equal widths: surely less than a step wider? Not with five seeds on this grid.
        ({ADADELTA: (0.5, 5.0)}, ["supported", "supported", "undecided", "supported"]),
    ],
)
def test_each_part_must_hold(synthetic: Synthetic, changed: Any, words: list[str | None]) -> None:
    evidence = synthetic(CLAIM, ranges(AS_CLAIMED | changed))
    found = finding(CLAIM, evidence, data="invented")
    for comparison, word in zip(found.comparisons[:4], words, strict=True):
        assert word in (None, comparison.word), comparison
    assert found.word == ("undecided" if "undecided" in words else "not supported")


def test_equal_widths_elsewhere_on_their_grids_are_not_wider(synthetic: Synthetic) -> None:
    # All three work over 1.2 decades, of which three of SGD's rates and four of the others' are.
    of = {SGD: (0.11, 1.74), ADADELTA: (0.19, 3.0), RMSPROP: (1.9e-4, 3.0e-3)}
    found = finding(CLAIM, synthetic(CLAIM, ranges(of)), data="invented")
    for wider in found.comparisons[2:4]:
        assert wider.effect == pytest.approx(1 / 3, abs=0.05)
        assert wider.low < 0
        # Nor would it be so with any number of seeds.
        assert (wider.word, wider.needed) == ("undecided", None)
    assert found.word == "undecided"


@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    values = ranges(AS_CLAIMED)
    evidence = synthetic(CLAIM, lambda a, c: values(a, c) if c.seed < seeds else None)
    found = check_partial(CLAIM, evidence, seeds)
    assert len(found.comparisons) == (0 if seeds < 2 else 7)


def test_a_width_waits_for_its_whole_grid(synthetic: Synthetic) -> None:
    values = ranges(AS_CLAIMED)
    evidence = synthetic(
        CLAIM, lambda a, c: None if (a, c.lr, c.seed) == (SGD, 0.05, 2) else values(a, c)
    )
    assert rates.width(evidence, SGD, 2) is None
    assert rates.width(evidence, SGD, 1) == pytest.approx(1.0)
    assert rates.width(evidence, ADADELTA, 2) == pytest.approx(2.0)


def test_a_run_without_a_loss_counts_as_guessing(synthetic: Synthetic) -> None:
    def values(arm: str, config: RunConfig) -> Values:
        found = ranges(AS_CLAIMED)(arm, config)
        if arm == SGD and config.lr == c09.UNBOUNDED:
            found = {name: [None] * config.epochs for name in found} | {
                "test_accuracy": [0.1] * config.epochs
            }
        return found

    found = finding(CLAIM, synthetic(CLAIM, values), data="invented")
    assert found.word == "supported"
    assert found.comparisons[1].effect == pytest.approx(0.75, abs=0.01)


def test_the_chart_says_where_training_stops(synthetic: Synthetic) -> None:
    evidence = synthetic(CLAIM, ranges(AS_CLAIMED | {RMSPROP: (5e-4, 0.05)}))
    assert rates.stops(evidence, SGD) == [0.02, 0.05, 2.0, 5.0, 10.0, 20.0]
    assert rates.stops(evidence, ADADELTA) == [0.1, 50.0]
    by_rate, factors = c09.judge(evidence).charts
    for chart, unit in ((by_rate, {}), (factors, rates.CUSTOMARY)):
        assert [line.arm for line in chart.lines[:3]] == [SGD, ADADELTA, RMSPROP]
        for line in chart.lines[:3]:
            failed = [lr / unit.get(line.arm, 1.0) for lr in rates.stops(evidence, line.arm)]
            assert list(line.failed) == failed
            assert set(failed) <= set(line.x)
        # The band is not an interval of the mean, and is not called one.
        assert "from the least to the greatest" in chart.text
        assert "interval" not in chart.text


@pytest.mark.parametrize("preset", PRESETS)
def test_sgds_runs_are_c3s(preset: Preset) -> None:
    ours = c09.plan(preset, FULL)
    seeds = {config.seed for _, config in ours}
    theirs = {config for arm, config in c03.plan(preset, FULL) if arm == WITH}
    assert len(seeds) >= (3 if preset == "quick" else 5)
    assert {config for config in theirs if config.seed in seeds} <= {
        config for arm, config in ours if arm == SGD
    }
    assert {config.optimizer for arm, config in ours if arm == RMSPROP} == {"rmsprop"}
    assert {config.optimizer for arm, config in ours if arm == ADADELTA} == {"adadelta"}
    assert len(set(ours)) == len(ours)
    order = [config.seed for _, config in ours]
    assert order == sorted(order)  # a study that is cut off has whole grids
    assert not c09.CLAIM.demo


@pytest.mark.parametrize("arm", rates.GRIDS)
def test_grids_have_three_rates_in_a_decade(arm: str) -> None:
    steps = np.diff(np.log10(rates.GRIDS[arm]))
    assert ((steps > 0.29) & (steps < 0.41)).all()
    assert {rates.CUSTOMARY[arm], rates.FAR * rates.CUSTOMARY[arm]} <= set(rates.GRIDS[arm])
    assert math.isclose(c09.ROUNDING**2, 4 * c03.STEP**2 / 12)
