"""Odd measures of claims on runs whose figures are known, stores, and the choice of claims."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.errors import OptionError
from normkit.lab.claims import c03, registry
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.claims.measures import densities, limits
from normkit.lab.claims.registry import all_claims, select
from normkit.lab.claims.study import WITH, WITHOUT
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding, judge
from normkit.lab.probes import normal_quantiles
from normkit.lab.store import Store

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]
FULL = Available("full", 60_000, 10_000)
CLAIMS = list(all_claims().values())


def noise(config: RunConfig, arm: str) -> float:
    return float(np.random.default_rng([config.seed, len(arm)]).normal(0, 0.005))


def invented(config: RunConfig, arm: str, gain: float) -> dict[str, Sequence[float | None]]:
    """An accuracy that rises over the epochs, higher by ``gain`` with BN.

    Of a timing: PyTorch's normalization above convolution by ``gain``, and so much to save.
    """
    if config.kind == "timing":
        return timing(gain + noise(config, arm))
    shift = (gain if arm == WITH else 0.0) + noise(config, arm)
    accuracy = [0.7 + 0.02 * epoch + shift for epoch in range(config.epochs)]
    return {
        "test_accuracy": accuracy,
        "test_loss": [1 - each for each in accuracy],
        "epoch_train_loss": [1 - each for each in accuracy],
        "train_loss": [1 - each for each in accuracy],
        **{named("test_accuracy", each): accuracy for each in config.evaluations},
    }


def timing(gain: float) -> dict[str, Sequence[float | None]]:
    parts = {"norm": 0.4 + gain, "convolution": 0.4, "rest": 0.2 - gain}
    found: dict[str, Sequence[float | None]] = {"torch_step": [1.0], "ours_step": [0.9 - 2 * gain]}
    for side in ("torch", "ours"):
        for kind, part in parts.items():
            found[f"{side}_{kind}_forward"] = [part / 3]
            found[f"{side}_{kind}_backward"] = [2 * part / 3]
    return found


def learns_below(limits: Mapping[str, float]) -> Callable[[str, RunConfig], Values]:
    """An arm trains up to a rate of its own, and stays at guessing beyond it."""

    def values(arm: str, config: RunConfig) -> Values:
        loss = 0.5 if config.lr <= limits[arm] else 2.25
        return invented(config, arm, 0.0) | {"epoch_train_loss": [loss] * config.epochs}

    return values


def shifted(by_arm: Mapping[str, tuple[float, float]]) -> Callable[[str, RunConfig], Any]:
    """Normal inputs times a scale; (scale at the start, scale at the end) for each arm."""

    def vectors(arm: str, config: RunConfig) -> Any:
        first, last = by_arm[arm]
        first, last = (scale + noise(config, arm) for scale in (first, last))
        steps = {1: first, 100: (first + last) / 2, 200: last}
        return {
            f"activation{layer}_{what}": {
                step: tuple(scale * each for each in normal_quantiles())
                if what == "quantiles"
                else (0.2,) * 60
                for step, scale in steps.items()
            }
            for layer in densities.LAYERS
            for what in ("quantiles", "density")
        }

    return vectors


def test_c1_needs_both_parts(synthetic: Synthetic) -> None:
    claim = select(["C1"])[0]

    def values(arm: str, config: RunConfig) -> Values:
        faster = invented(config, arm, 0.05)
        return faster | {"epoch_train_loss": [0.5 + noise(config, arm)] * config.epochs}

    found = finding(claim, synthetic(claim, values), data="invented")
    assert found.comparisons[0].word == "confirmed"
    assert found.comparisons[1].word != "confirmed"
    assert found.word != "confirmed"


def test_c1_counts_a_broken_run_as_guessing(synthetic: Synthetic) -> None:
    claim = select(["C1"])[0]

    def values(arm: str, config: RunConfig) -> Values:
        if arm == WITHOUT:
            nothing = [None] * config.epochs
            return {"test_accuracy": [0.1] * config.epochs, "epoch_train_loss": nothing}
        return invented(config, arm, 0.0)

    found = finding(claim, synthetic(claim, values), data="invented")
    assert found.word == "confirmed"
    assert found.comparisons[1].effect == pytest.approx(math.log(10) - 0.22, abs=0.02)


def test_c3_finds_where_training_stops(synthetic: Synthetic) -> None:
    evidence = synthetic(select(["C3"])[0], learns_below({WITH: 5.0, WITHOUT: 0.5}))
    assert limits.largest(WITH).by_seed(evidence)[0] == pytest.approx(math.log10(5))
    assert limits.largest(WITHOUT).by_seed(evidence)[0] == pytest.approx(math.log10(0.5))
    found = c03.CLAIM.judge(evidence)
    decides = found.decides[0]
    assert decides is not None
    assert decides.effect == pytest.approx(1.0)
    # All seeds agree, and still the interval is not narrower than the grid can tell.
    assert decides.high - decides.low > limits.STEP / 2


def test_c3_of_arms_that_never_and_always_train(synthetic: Synthetic) -> None:
    evidence = synthetic(select(["C3"])[0], learns_below({WITH: 100.0, WITHOUT: 0.01}))
    assert limits.largest(WITHOUT).by_seed(evidence)[0] == pytest.approx(
        math.log10(0.1) - limits.STEP
    )
    table = next(table for table in c03.CLAIM.judge(evidence).tables if table.key == "limits")
    assert table.rows[0] == (0, "20 or more", "none from 0.1")


def test_c2_measures_scale_and_change(synthetic: Synthetic) -> None:
    claim = select(["C2"])[0]
    arms = {WITH: (1.0, 1.0), WITHOUT: (0.5, 1.5)}
    evidence = synthetic(claim, lambda a, c: invented(c, a, 0), shifted(arms))
    steady, moving = evidence.of(WITH)[0], evidence.of(WITHOUT)[0]
    # W1 between N(0, s²) and N(0, 1) is |s − 1|·√(2/π); scales 0.5, 1, 1.5 have mean ⅓.
    assert densities.DISTANCE.read(moving) == pytest.approx(math.sqrt(2 / math.pi) / 3, rel=0.05)
    assert densities.DISTANCE.read(steady) == pytest.approx(0, abs=0.02)
    assert densities.WANDERING.read(moving) == pytest.approx(math.sqrt(2 / math.pi) / 3, rel=0.05)
    assert densities.WANDERING.read(steady) == pytest.approx(0, abs=0.02)


def test_c14_reads_shares_of_a_step(synthetic: Synthetic) -> None:
    claim = select(["C14"])[0]
    parts = timing(-0.1) | {"ours_step": [0.5]}
    found = finding(claim, synthetic(claim, lambda arm, config: parts), data="invented")
    # The mean of the networks, then each of them.
    effects = [-10, 30, 50, -10, -10, -10]
    assert [each.effect for each in found.comparisons] == pytest.approx(effects)
    times = next(table for table in found.tables if table.key == "times")
    assert times.rows[0][:3] == ("LeNet-5", "PyTorch's layers", "normalization")
    assert times.rows[0][5] == pytest.approx(30)


def test_stores_are_judged(store: Store, write_run: Any) -> None:
    claim = select(["C5"])[0]
    arms = claim.plan("quick", FULL)
    store.plan("C5", "quick", arms)
    store.note("data:fashion-mnist", "Fashion-MNIST (somewhere)")
    assert judge(store, "full") == []
    for arm, config in arms[:6]:
        write_run(store, config, invented(config, arm, 0.1))
    (found,) = judge(store, "quick")
    assert found.word == "open"  # not before all planned runs are there
    assert found.runs == 6
    assert found.seconds == 6.0
    assert found.data == "Fashion-MNIST (somewhere): 20,000 training and 10,000 test images"
    assert "3 of 5 seeds" in found.sentence
    for arm, config in arms[6:]:
        write_run(store, config, invented(config, arm, 0.1))
    (found,) = judge(store, "quick")
    assert found.word == "confirmed"


def test_unknown_claims_are_refused() -> None:
    with pytest.raises(OptionError, match=r"C99.*normkit lab list"):
        select(["C99"])


def test_without_a_name_the_claims_of_the_demo_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (dataclasses.replace(CLAIMS[0], key=f"C{n}", demo=n == 1) for n in (1, 2))
    monkeypatch.setattr(registry, "all_claims", lambda: {"C1": one, "C2": other})
    assert select() == [one]
    assert select(["all"]) == [one, other]
    assert select(["C2"]) == [other]
