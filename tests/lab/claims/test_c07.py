"""C7: the width of the inputs, and looks that end with the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from normkit.lab.claims import c07
from normkit.lab.claims.claim import Available, Evidence


def test_width_is_the_mean_of_two_sites(synthetic: Callable[..., Evidence]) -> None:
    stds = {"activation1_std": [1.0, 1.2], "activation2_std": [1.0, 1.4]}
    run = synthetic(c07.CLAIM, lambda arm, config: stds).runs[0]
    assert c07.WIDTH.read(run) == pytest.approx(1.3)
    stds["activation2_std"] = []
    assert c07.WIDTH.read(synthetic(c07.CLAIM, lambda arm, config: stds).runs[0]) is None


@pytest.mark.parametrize("preset", ["quick", "full", "paper"])
def test_last_look_is_at_the_end(preset: Any) -> None:
    for _, config in c07.CLAIM.plan(preset, Available("full", 60_000, 10_000)):
        assert config.steps % config.probes[0][1] == 0
