"""The three phases of a training on several domains."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from normkit.lab import data
from normkit.lab.building import build_model
from normkit.lab.config import RunConfig
from normkit.lab.data.domains import in_domain
from normkit.lab.domains import evaluate_domains, forward
from normkit.lab.evaluations import evaluate, evaluate_under
from normkit.lab.scoring import Score, in_order, score
from normkit.statistics import recalibrate, use_domain

Make = Callable[..., RunConfig]
NAMES = ("domains-shared", "domains-specific")
SPECIFIC = {"norm": "domain", "norm_options": (("domains", 2), ("share_affine", False))}
SHARED = {"norm": "batch"}


@pytest.fixture(scope="module")
def small(dataset: data.Dataset) -> data.Dataset:
    return dataclasses.replace(
        dataset, train=dataset.train.take(256, seed=0), test=dataset.test.take(100, seed=0)
    )


@pytest.fixture
def images(small: data.Dataset) -> torch.Tensor:
    """A training batch: 64 images, then their negatives."""
    parts = (in_domain(small.train, "negatives", k) for k in (0, 1))
    return torch.cat([next(data.batches(part, 64, seed=0))[0] for part in parts])


def trained(config: RunConfig, images: torch.Tensor) -> nn.Module:
    """Statistics moved, γ and β of the domains unlike each other."""
    model = build_model(config, in_channels=1, classes=10).train()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter += 0.1 * noise
        for _ in range(5):
            forward(config, model, images)
    return model


def test_domain_model_trains_on_each_domain_separately(
    make_config: Make, images: torch.Tensor
) -> None:
    config = make_config(domains="negatives", **SPECIFIC)
    model = trained(config, images)
    other = copy.deepcopy(model)
    scores = forward(config, model, images)
    with use_domain(other, 0):
        first = other(images[:64])
    with use_domain(other, 1):
        second = other(images[64:])
    assert torch.equal(scores, torch.cat([first, second]))
    means = model.norm1.running_mean  # type: ignore[union-attr]
    assert torch.equal(means, other.norm1.running_mean)  # type: ignore[arg-type, union-attr]
    assert (means[0] - means[1]).abs().max() > 0.1  # type: ignore[index, operator]


def test_other_model_trains_on_both_domains_together(
    make_config: Make, images: torch.Tensor
) -> None:
    config = make_config(domains="negatives", **SHARED)
    model = trained(config, images)
    other = copy.deepcopy(model)
    assert torch.equal(forward(config, model, images), other(images))


def test_test_is_the_mean_of_both_domains(
    make_config: Make, small: data.Dataset, images: torch.Tensor
) -> None:
    config = make_config(domains="negatives", **SPECIFIC)
    model = trained(config, images)
    accuracy, loss, *_ = evaluate(model, small.test, config)
    assert model.training
    model.eval()
    found = []
    for domain in (0, 1):
        with use_domain(model, domain):
            part = in_domain(small.test, "negatives", domain)
            found.append(score(model, in_order(part, config), config))
    assert accuracy == pytest.approx((found[0][0] + found[1][0]) / 2)
    assert loss == pytest.approx((found[0][1] + found[1][1]) / 2)  # type: ignore[operator]


def under(
    name: str, model: nn.Module, small: data.Dataset, config: RunConfig, samples: int = 256
) -> float | None:
    found, _ = evaluate_under([(name, samples, 64)], model, small, config, 0)
    return found[f"test_loss@{name}-{samples}-64"]


def test_of_a_model_that_knows_no_domains_specific_statistics_are_of_one_domain(
    make_config: Make, small: data.Dataset, images: torch.Tensor
) -> None:
    config = make_config(domains="negatives", **SHARED)
    model = trained(config, images)
    losses = []
    for domain in (0, 1):
        other = copy.deepcopy(model)
        train = in_domain(small.train, "negatives", domain)
        # All 256 images, in whatever batches of 64: only those of the first layer are the same.
        batches = data.batches(train, 64, seed=0, epoch=config.epochs, channels_last=True)
        recalibrate(other, batches, samples=None, progress=False)
        other.eval()
        test = in_domain(small.test, "negatives", domain)
        losses.append(score(other, in_order(test, config), config)[1])
    assert under(NAMES[1], model, small, config) == pytest.approx(sum(losses) / 2)  # type: ignore[arg-type]


def test_merged_statistics_are_those_of_all_values(
    make_config: Make, small: data.Dataset, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(domains="negatives", **SPECIFIC)
    model = trained(config, images)
    seen = {}

    def look(model: nn.Module, *_: Any) -> Score:
        seen["mean"] = model.norm1.running_mean.clone()  # type: ignore[union-attr, operator]
        seen["var"] = model.norm1.running_var.clone()  # type: ignore[union-attr, operator]
        return Score(0.0, 0.0)

    monkeypatch.setattr("normkit.lab.domains.evaluate_domains", look)
    under(NAMES[0], model, small, config)
    both = [in_domain(small.train, "negatives", k) for k in (0, 1)]
    inputs = torch.cat([next(data.batches(part, 256, seed=0))[0] for part in both])
    with torch.no_grad():
        values = model.conv1(inputs).double().transpose(0, 1).flatten(1)  # type: ignore[union-attr, operator]
    for row in (0, 1):
        assert torch.allclose(seen["mean"][row].double(), values.mean(1), rtol=1e-4, atol=1e-5)
        assert torch.allclose(seen["var"][row].double(), values.var(1), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fields", [SHARED, SPECIFIC], ids=["shared", "specific"])
def test_model_stays_as_it_was(
    make_config: Make, small: data.Dataset, images: torch.Tensor, name: str, fields: dict[str, Any]
) -> None:
    config = make_config(domains="negatives", **fields)
    model = trained(config, images)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(7)
    state = torch.get_rng_state()
    plain = evaluate(model, small.test, config).loss
    loss = under(name, model, small, config)
    assert loss is not None
    assert loss != plain
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_shared_and_specific_statistics_differ(
    make_config: Make, small: data.Dataset, images: torch.Tensor
) -> None:
    for fields in (SHARED, SPECIFIC):
        config = make_config(domains="negatives", **fields)
        model = trained(config, images)
        shared, specific = (under(name, model, small, config) for name in NAMES)
        assert shared != specific


def test_model_without_phases_is_tested_on_both_domains(
    make_config: Make, small: data.Dataset, images: torch.Tensor
) -> None:
    config = make_config(domains="negatives", norm="group")
    model = trained(config, images)
    accuracy = evaluate_domains(model, small.test, config).figure
    assert accuracy * 200 == pytest.approx(round(accuracy * 200))
