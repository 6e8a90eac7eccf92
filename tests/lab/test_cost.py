"""What runs are expected to cost, in proportion."""

from __future__ import annotations

import pytest

from normkit.lab.claims.claim import PRESETS, Available
from normkit.lab.claims.registry import all_claims
from normkit.lab.config import RunConfig
from normkit.lab.cost import STEP, expected_seconds, size_of


def run(**fields: object) -> RunConfig:
    usual = {
        "model": "lenet5", "norm": "batch", "lr": 0.1, "train_images": 512, "test_images": 256,
        "batch_size": 128, "epochs": 2, "seed": 0,
    }  # fmt: skip
    return RunConfig(**(usual | fields))  # type: ignore[arg-type]


def test_seeds_and_rates_cost_the_same_and_larger_networks_more() -> None:
    assert expected_seconds(run()) == expected_seconds(run(seed=7, lr=1.0))
    wide = run(model="resnet18", model_options=(("width", 16),))
    narrow = run(model="resnet18", model_options=(("width", 8),))
    assert expected_seconds(wide) > 2 * expected_seconds(narrow) > 2 * expected_seconds(run())


def test_evaluations_count() -> None:
    bare = expected_seconds(run(epochs=4, evaluate_every=4))
    often = expected_seconds(run(epochs=4))
    under = expected_seconds(run(epochs=4, evaluations=(("population", 512, 128),)))
    assert bare < often < under


def test_what_cannot_be_computed_costs_its_steps() -> None:
    assert expected_seconds(run(model="no such network")) == pytest.approx(8 * STEP)


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "paper"])
def test_every_network_of_every_claim_is_counted(preset: str) -> None:
    configs = {
        config
        for claim in all_claims().values()
        for _, config in claim.plan(preset, Available.whole(claim.data))  # type: ignore[arg-type]
        if config.seed == 0 and config.kind == "training"
    }
    for config in configs:
        # Raises where expected_seconds falls back to the steps.
        assert min(size_of(config)) > 0, config
