"""C22: parameters are counted from the models, which keep the source's ratio."""

from __future__ import annotations

import pytest
import torch

from normkit.lab.building import build_model
from normkit.lab.claims.c22 import CLAIM
from normkit.lab.claims.claim import Available, Preset
from normkit.lab.claims.measures.sizes import CUT, DENSENET, RESNET, SOURCE, parameters

FULL = Available("full", 60_000, 10_000)


def test_parameters_are_those_of_the_model_that_is_trained() -> None:
    state = torch.get_rng_state()
    for config in dict(CLAIM.plan("quick", FULL)).values():
        model = build_model(config, in_channels=1, classes=10)
        torch.set_rng_state(state)
        assert parameters(config) == sum(p.numel() for p in model.parameters())
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("preset", CLAIM.presets)
def test_widths_keep_the_ratio_of_the_source(preset: Preset) -> None:
    counts = {arm: parameters(config) for arm, config in CLAIM.plan(preset, FULL)}
    assert counts[RESNET] / counts[DENSENET] == pytest.approx(14.8, rel=0.1)
    # The third arm is ResNet-18 with about DenseNet's parameters.
    assert counts[CUT] == pytest.approx(counts[DENSENET], rel=0.15)


def test_paper_is_the_sources_plan() -> None:
    arms = dict(CLAIM.plan("paper", FULL))
    assert {arm: parameters(arms[arm]) for arm in SOURCE} == SOURCE
    for config in arms.values():
        assert (config.size, config.batch_size, config.epochs) == (96, 256, 10)
        assert config.schedule == "constant"
        assert config.final_evaluations == (("population", 10_000, 256),)
