"""C6: what is read in the layers along training, on invented runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from normkit.lab.claims import c06
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.claims.measures import layers
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]
Values = Mapping[str, Sequence[float | None]]


def network(arm: str, config: RunConfig) -> Values:
    """Gradients that decay by layer; weights and inputs that grow, less so with BN."""
    plain = config.norm == "none"
    decay = {"relu": (0.02, 0.3), "sigmoid": (0.1, 0.9)}[config.act][plain]
    share = [epoch / (config.epochs - 1) for epoch in range(config.epochs)]
    found: dict[str, list[float | None]] = {
        "epoch_train_loss": [0.5] * config.epochs,
        "test_accuracy": [0.8] * config.epochs,
    }
    for layer in layers.LAYERS:
        level = 0.001 * config.seed - 1 - decay * (layers.LAYERS[-1] - layer)
        found[f"layer{layer}_gradient"] = [10**level] * config.epochs
        weight = 0.5 + 0.2 * plain
        found[f"layer{layer}_weight"] = [10 ** (weight * part) for part in share]
        given = 0.1 + 0.4 * (plain and layer > 1)  # the first is given images, alike in all arms
        found[f"layer{layer}_input"] = [10 ** (given * part) for part in share]
    return found


def test_effects_are_in_decades_per_layer(synthetic: Synthetic) -> None:
    found = finding(c06.CLAIM, synthetic(c06.CLAIM, network), data="invented")
    assert found.word == "confirmed"
    effects = [each.effect for each in found.comparisons]
    assert effects == pytest.approx([0.28, 0.8, 0.2, 0.4, 0.28, 0.8, 0.2, 0.4])
    assert {each.unit for each in found.comparisons} == {"decades per layer"}
    assert "1.58 times those with BN" in found.sentence
    table = {row[0]: row[1:] for row in found.tables[0].rows}
    assert table["ReLU without BN"][:5] == pytest.approx((0.3, 0.3, 0.3, 79433, 3.16))


def test_charts_show_geometric_means(synthetic: Synthetic) -> None:
    found = finding(c06.CLAIM, synthetic(c06.CLAIM, network), data="invented")
    charts = {chart.key: chart for chart in found.charts}
    assert list(charts) == ["gradient-first", "gradient-last", "weight", "input"]
    plain = charts["gradient-last"].lines[1]
    assert plain.label == "ReLU without BN"
    assert plain.x == layers.LAYERS
    assert plain.y[0] == pytest.approx(10**-2.798)
    assert plain.y[-1] == pytest.approx(10**-0.998)
    assert charts["weight"].lines[1].y[-1] == pytest.approx(10**0.7)


@pytest.mark.parametrize("broken", [0.0, None])
def test_look_without_gradient_is_left_out(synthetic: Synthetic, broken: float | None) -> None:
    def values(arm: str, config: RunConfig) -> Values:
        found = dict(network(arm, config))
        found["layer2_gradient"] = [*found["layer2_gradient"][:-1], broken]
        return found

    run = synthetic(c06.CLAIM, values).runs[0]
    whole = synthetic(c06.CLAIM, network).runs[0]
    assert len(layers.looks(run, "gradient")) == run.config.epochs - 1
    assert layers.DECAY.read(run) == pytest.approx(layers.DECAY.read(whole))
    assert layers.DECAY_AT_END.read(run) is None
    assert layers.WEIGHTS.read(run) == layers.WEIGHTS.read(whole)
    nothing = synthetic(c06.CLAIM, lambda _, config: {"layer2_gradient": [0.0] * config.epochs})
    assert layers.DECAY.read(nothing.runs[0]) is None


@pytest.mark.parametrize("preset", ["quick", "full", "paper"])
def test_last_look_is_at_the_end(preset: Any) -> None:
    for _, config in c06.CLAIM.plan(preset, Available("full", 60_000, 10_000)):
        ((name, every),) = config.probes
        assert name == "layers"
        assert config.steps % every == 0
