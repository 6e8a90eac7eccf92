"""C9: ranges of learning rates that work, read on coarse grids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c03, c09
from normkit.lab.claims.claim import Available, Evidence, Preset
from normkit.lab.claims.measures import rates
from normkit.lab.claims.measures.rates import ADADELTA, RMSPROP, SGD
from normkit.lab.claims.study import WITH
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


def test_equal_widths_elsewhere_on_their_grids_are_not_wider(synthetic: Synthetic) -> None:
    # All three work over 1.2 decades, of which seven of SGD's rates and eight of the others' are.
    of = {SGD: (0.11, 1.74), ADADELTA: (0.19, 3.0), RMSPROP: (1.9e-4, 3.0e-3)}
    found = finding(CLAIM, synthetic(CLAIM, ranges(of)), data="invented")
    for wider in found.comparisons[2:4]:
        assert wider.effect == pytest.approx(1 / 6, abs=0.05)
        assert wider.low < 0
        assert wider.word == "open"
    assert found.word != "confirmed"


def test_a_width_waits_for_its_whole_grid(synthetic: Synthetic) -> None:
    values = ranges(AS_CLAIMED)
    evidence = synthetic(
        CLAIM, lambda a, c: None if (a, c.lr, c.seed) == (SGD, 0.05, 2) else values(a, c)
    )
    widths = {arm: rates.WIDTHS[arm].by_seed(evidence) for arm in (SGD, ADADELTA)}
    assert 2 not in widths[SGD]
    assert widths[SGD][1] == pytest.approx(1.0)
    assert widths[ADADELTA][2] == pytest.approx(2.0)


@pytest.mark.parametrize("preset", c09.CLAIM.presets)
def test_sgds_runs_are_c3s(preset: Preset) -> None:
    ours = c09.plan(preset, FULL)
    seeds = {config.seed for _, config in ours}
    theirs = {config for arm, config in c03.PLAN(preset, FULL) if arm == WITH}
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
def test_grids_have_six_rates_in_a_decade(arm: str) -> None:
    steps = np.diff(np.log10(rates.GRIDS[arm]))
    assert ((steps > 0.12) & (steps < 0.23)).all()
    assert {rates.CUSTOMARY[arm], c09.FAR * rates.CUSTOMARY[arm]} <= set(rates.GRIDS[arm])
