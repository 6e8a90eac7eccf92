"""C27's arms: one network, one recipe, another function in LayerNorm's place."""

from __future__ import annotations

import dataclasses

import pytest

from normkit.lab.building import build_model
from normkit.lab.claims.claim import Available, Preset
from normkit.lab.claims.registry import all_claims

CLAIM = all_claims()["C27"]


@pytest.mark.parametrize("preset", CLAIM.presets)
def test_arms_differ_in_their_normalizer_and_first_weights_alone(preset: Preset) -> None:
    plan = CLAIM.plan(preset, Available.whole(CLAIM.data))
    configs = {arm: config for arm, config in plan if config.seed == 0}
    assert len(configs) == 8
    alike = [
        dataclasses.replace(c, norm="none", norm_options=(), model_options=())
        for c in configs.values()
    ]
    assert len({config.key for config in alike}) == 1
    inits = {dict(config.model_options)["init"] for config in configs.values()}
    assert inits == {"kaiming", "pytorch"}


def test_functions_cost_next_to_no_parameters() -> None:
    plan = CLAIM.plan("quick", Available.whole(CLAIM.data))
    sizes = {
        config.norm: sum(
            p.numel() for p in build_model(config, in_channels=1, classes=10).parameters()
        )
        for _, config in plan
    }
    # Thirteen normalizers: one α each, and Dynamic erf one shift more.
    assert sizes["dyt"] - sizes["layer"] == 13
    assert sizes["derf"] - sizes["dyt"] == 13
    assert sizes["layer"] - sizes["none"] == 13 * 2 * 32
