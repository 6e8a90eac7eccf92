"""C6 on invented runs: gradients that decay by layer, and weights and inputs that shrink or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normkit.lab.claims import c06
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]
FULL = Available("full", 60_000, 10_000)


def network(
    relu: tuple[float, float] = (0.3, 0.02),
    sigmoid: tuple[float, float] = (0.9, 0.1),
    weights: float = 0.2,
    inputs: float = 0.4,
) -> Any:
    """Decay without and with BN by activation, and how much smaller weights and inputs are."""

    def values(arm: str, config: RunConfig) -> Values:
        rng = np.random.default_rng([config.seed, len(arm)])
        plain = config.norm == "none"
        decay = {"relu": relu, "sigmoid": sigmoid}[config.act][0 if plain else 1]
        found: dict[str, list[float | None]] = {
            "epoch_train_loss": [0.5] * config.epochs,
            "test_accuracy": [0.8] * config.epochs,
        }
        last = config.epochs - 1
        for layer in c06.LAYERS:
            levels = {
                "gradient": -1 - decay * (c06.LAYERS[-1] - layer),
                "weight": 0.5 + (weights if plain else 0.0),
                # The first layer is given images, the same in all arms.
                "input": 0.1 + (inputs if plain and layer > 1 else 0.0),
            }
            for what, level in levels.items():
                noise = rng.normal(0, 0.01, config.epochs)
                # Weights and inputs grow apart over training.
                share = [1 if what == "gradient" else e / last for e in range(config.epochs)]
                found[f"layer{layer}_{what}"] = [
                    float(10 ** (level * part + each))
                    for part, each in zip(share, noise, strict=True)
                ]
        return found

    return values


def test_supported_where_all_four_parts_hold(synthetic: Synthetic, check_finding: Any) -> None:
    found = finding(c06.CLAIM, synthetic(c06.CLAIM, network()), data="invented")
    check_finding(c06.CLAIM, found)
    assert found.word == "supported"
    effects = [each.effect for each in found.comparisons]
    assert effects == pytest.approx([0.28, 0.8, 0.2, 0.4, 0.28, 0.8, 0.2, 0.4], abs=0.02)
    assert [each.seeds for each in found.comparisons] == [5] * 8


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"relu": (0.3, 0.3)}, 0),
        ({"relu": (0.02, 0.3)}, 0),  # BN makes it worse
        ({"sigmoid": (0.9, 0.88)}, 1),  # less, by less than matters
        ({"weights": -0.2}, 2),
        ({"inputs": 0.0}, 3),
    ],
)
def test_one_part_that_fails_is_enough(
    synthetic: Synthetic, changed: dict[str, Any], part: int
) -> None:
    found = finding(c06.CLAIM, synthetic(c06.CLAIM, network(**changed)), data="invented")
    words = ["supported"] * 4
    words[part] = "not supported"
    assert [each.word for each in found.comparisons[:4]] == words
    assert found.word == "not supported"


def test_undecided_where_seeds_disagree(synthetic: Synthetic) -> None:
    def values(arm: str, config: RunConfig) -> Values:
        return network(weights=0.5 if config.seed % 2 else -0.4)(arm, config)  # type: ignore[no-any-return]

    found = finding(c06.CLAIM, synthetic(c06.CLAIM, values), data="invented")
    assert found.word == "undecided"


@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_partial_evidence(synthetic: Synthetic, check_partial: Any, seeds: int) -> None:
    values = network()
    evidence = synthetic(c06.CLAIM, lambda a, c: values(a, c) if c.seed < seeds else None)
    found = check_partial(c06.CLAIM, evidence, seeds)
    assert len(found.comparisons) == (0 if seeds < 2 else 8)


@pytest.mark.parametrize("broken", [0.0, None])
def test_a_look_without_a_gradient_is_left_out(synthetic: Synthetic, broken: float | None) -> None:
    def values(arm: str, config: RunConfig) -> Values:
        found = dict(network()(arm, config))
        found["layer2_gradient"] = [*found["layer2_gradient"][:-1], broken]
        return found

    run = synthetic(c06.CLAIM, values).runs[0]
    whole = synthetic(c06.CLAIM, network()).runs[0]
    assert len(c06.looks(run, "gradient", c06.LAYERS)) == run.config.epochs - 1
    assert c06.decay(run) == pytest.approx(c06.decay(whole), abs=0.01)
    assert c06.weights(run) == c06.weights(whole)
    nothing = synthetic(c06.CLAIM, lambda _, config: {"layer2_gradient": [0.0] * config.epochs})
    assert c06.decay(nothing.runs[0]) is None


def test_charts_show_the_four_arms_by_layer(synthetic: Synthetic) -> None:
    judgement = c06.judge(synthetic(c06.CLAIM, network()))
    charts = {chart.key: chart for chart in judgement.charts}
    assert list(charts) == ["gradient-first", "gradient-last", "weight", "input"]
    for chart in charts.values():
        assert chart.y_log
        assert [line.arm for line in chart.lines] == [
            "ReLU with BN",
            "ReLU without BN",
            "sigmoid with BN",
            "sigmoid without BN",
        ]
        assert all(low > 0 for line in chart.lines for low in line.low if low is not None)
    plain = charts["gradient-last"].lines[1]
    assert plain.x == c06.LAYERS
    assert plain.y[0] == pytest.approx(10**-2.8, rel=0.1)
    assert plain.y[-1] == pytest.approx(0.1, rel=0.1)
    table = {row[0]: row[1:] for row in judgement.tables[0].rows}
    assert table["ReLU without BN"][:3] == pytest.approx((0.3, 0.3, 0.3), abs=0.01)
    assert table["ReLU with BN"][3] == pytest.approx(10**3.5, rel=0.1)
    assert table["ReLU with BN"][4] == pytest.approx(10**0.1, rel=0.1)


@pytest.mark.parametrize("preset", ["quick", "full", "paper"])
def test_the_plan(preset: Any) -> None:
    arms = c06.plan(preset, FULL)
    scale = c06.SCALES[preset]
    assert len(arms) == 4 * scale.seeds >= 20
    assert {(arm, config.act, config.norm) for arm, config in arms} == {
        ("ReLU with BN", "relu", "batch"),
        ("ReLU without BN", "relu", "none"),
        ("sigmoid with BN", "sigmoid", "batch"),
        ("sigmoid without BN", "sigmoid", "none"),
    }
    # Nothing else sets the arms of a seed apart, and what is called the last look is at the end.
    fields = {(c.lr, c.momentum, c.weight_decay, c.batch_size, c.epochs, c.size) for _, c in arms}
    assert len(fields) == 1
    config = arms[0][1]
    ((name, every),) = config.probes
    assert name == "layers"
    assert config.steps % every == 0
    assert config.size == (28 if preset == "paper" else 16)
