"""Probes: they read what they say, and leave everything as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from normkit.errors import OptionError
from normkit.lab import data
from normkit.lab.building import build_model
from normkit.lab.config import RunConfig
from normkit.lab.models.noise import ShiftingNoise
from normkit.lab.probes import LEVELS, PROBES, Reading, Step, normal_quantiles, observe
from normkit.lab.probes.activations import describe
from normkit.lab.training import train

Make = Callable[..., RunConfig]


def probe(name: str, model: nn.Module) -> Any:
    """Observe without a step to compute again, which most probes do not need."""
    return observe([name], model, Step(lambda: torch.tensor(0.0), 1.0))


@pytest.mark.parametrize("name", sorted(PROBES))
def test_probes_change_no_number(
    make_config: Make, dataset: data.Dataset, make_log: Any, name: str
) -> None:
    plain, watched = make_log(), make_log()
    train(make_config(), dataset, plain)
    train(make_config(probes=((name, 3),)), dataset, watched)
    read = (watched.metrics.keys() | watched.vectors.keys()) - plain.metrics.keys()
    assert {step for _, step in read - plain.vectors.keys()} == {1, 3, 6}
    assert {key: watched.metrics[key] for key in plain.metrics} == plain.metrics
    assert {key: watched.vectors[key] for key in plain.vectors} == plain.vectors


def test_activations_are_those_of_the_nonlinearity(make_config: Make) -> None:
    model = build_model(make_config(), in_channels=1, classes=10)
    images = torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with probe("activations", model) as reading, torch.no_grad():
        model(images)
    # Fresh BN: γ = 1, β = 0, so each site has mean 0 and standard deviation 1.
    for site in (1, 2):
        assert reading.scalars[f"activation{site}_mean"] == pytest.approx(0, abs=1e-5)
        assert reading.scalars[f"activation{site}_std"] == pytest.approx(1, abs=1e-3)
    assert "activation3_mean" not in reading.scalars  # LeNet-5 has two convolutions
    with probe("gradients", model) as gradients:
        model(images).sum().backward()
    assert len(gradients.scalars) == 5
    assert not model.act1._forward_pre_hooks  # type: ignore[union-attr]


def test_quantiles_and_density_of_a_normal_sample() -> None:
    reading = Reading()
    values = torch.randn(64, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    describe("x", values, reading)
    assert len(reading.vectors["x_quantiles"]) == len(LEVELS)
    assert reading.vectors["x_quantiles"] == pytest.approx(normal_quantiles(), abs=0.06)
    density = reading.vectors["x_density"]
    assert sum(density) * 12 / 60 == pytest.approx(1, abs=1e-3)


def test_values_that_are_not_finite_are_noted_as_none() -> None:
    reading = Reading()
    describe("x", torch.tensor([1.0, float("inf")]), reading)
    assert reading.scalars == {"x_mean": None, "x_std": None}
    assert reading.vectors == {}


def test_unknown_probes_are_refused(make_config: Make) -> None:
    known = "activations, channels, gradients, landscape, layers"
    with pytest.raises(OptionError, match=known), probe("telepathy", nn.ReLU()):
        pass
    with pytest.raises(OptionError, match="nonlinearity"), probe("activations", nn.ReLU()):
        pass


def test_layer_probe_matches_calculation() -> None:
    first, last = nn.Linear(2, 3), nn.Linear(3, 1)
    model = nn.Sequential(first, nn.BatchNorm1d(3), nn.Sigmoid(), last).double()
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with probe("layers", model) as reading:
        model(x).square().mean().backward()
    out = first(x).detach().requires_grad_()
    hidden = torch.sigmoid(
        torch.batch_norm(out, *model[1].parameters(), None, None, True, 0, 1e-5, False)
    )
    hidden.retain_grad()
    scores = last(hidden)
    scores.square().mean().backward()
    expected = {
        "layer1_input": x.square().mean().sqrt(),
        "layer1_weight": first.weight.norm(),
        "layer1_gradient": out.grad.norm(),  # type: ignore[union-attr]
        "layer2_input": hidden.square().mean().sqrt(),
        "layer2_weight": last.weight.norm(),
        "layer2_gradient": (2 / 8 * scores).norm(),
    }
    assert reading.scalars == pytest.approx({k: v.item() for k, v in expected.items()})
    assert not any(module._forward_hooks for module in model.modules())


def test_layer_called_twice_is_read_over_both_calls() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    with probe("layers", nn.Sequential(layer)) as reading:
        (3 * layer(torch.full((1, 1), 1.0)) + 4 * layer(torch.full((1, 1), 7.0))).sum().backward()
    assert reading.scalars == pytest.approx(
        {"layer1_input": 5.0, "layer1_weight": 2.0, "layer1_gradient": 5.0}
    )


def test_layers_not_seen_or_not_finite_are_none() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    with probe("layers", model) as reading:
        model[0](torch.tensor([[math.inf]]))
    assert [name for name, value in reading.scalars.items() if value is not None] == [
        "layer1_weight",
        "layer2_weight",
    ]


def test_landscape_of_a_parabola() -> None:
    # L = a w² / 2 along one weight: the gradient changes by a for each unit of distance.
    layer, curvature, rate, start = nn.Linear(1, 1, bias=False).double(), 3.0, 0.25, 2.0
    nn.init.constant_(layer.weight, start)

    def loss() -> torch.Tensor:
        return curvature / 2 * layer(torch.ones(1, 1, dtype=torch.float64)).square().sum()

    with observe(["landscape"], layer, Step(loss, rate)) as reading:
        loss().backward()
    slope = curvature * start
    losses = [curvature / 2 * (start - k * rate * slope) ** 2 for k in (0, 0.5, 1, 2, 4)]
    assert reading.scalars == pytest.approx(
        {
            "landscape_range": max(losses) - min(losses),
            "landscape_change": curvature * 4 * rate * slope,
            "landscape_relative": curvature * 4 * rate,
            "landscape_smoothness": curvature,
            "landscape_gradient": slope,
        }
    )
    assert layer.weight.item() == start
    assert layer.weight.grad is not None and layer.weight.grad.item() == slope


def test_landscape_has_the_noise_of_its_step_and_is_not_watched() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), ShiftingNoise(), nn.ReLU())
    images = torch.randn(4, 1, 5, 5)
    seen: list[float] = []
    before = torch.get_rng_state()

    def loss() -> torch.Tensor:
        value = model(images).square().mean()
        seen.append(value.item())
        return value

    with observe(["channels", "landscape"], model, Step(loss, 0.1)) as reading:
        loss().backward()
        state, buffers = torch.get_rng_state(), [b.clone() for b in model.buffers()]
    assert len(seen) == 6
    assert seen[0] == seen[1]  # no noise of its own at distance 0
    assert len(set(seen)) == 5
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, buffers, model.buffers()))
    # The channels are those of the step, not of the last distance looked at.
    torch.set_rng_state(before)
    with torch.no_grad():
        inputs = model[:3](images).transpose(0, 1).flatten(1)
    assert reading.vectors["channel1_mean"] == pytest.approx(inputs.mean(1).tolist(), abs=1e-5)


def test_landscape_that_is_not_finite_is_none() -> None:
    layer = nn.Linear(1, 1, bias=False)

    def loss() -> torch.Tensor:
        return (layer(torch.ones(1, 1)) * math.inf).sum()

    with observe(["landscape"], layer, Step(loss, 0.1)) as reading:
        loss().backward()
    assert set(reading.scalars.values()) == {None}
