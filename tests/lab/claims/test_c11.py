"""C11: that the arms' options reach the layers."""

from __future__ import annotations

from normkit.lab.building import build_model
from normkit.lab.claims import c11
from normkit.lab.claims.claim import Available


def test_arms_differ_in_eps_and_starting_values() -> None:
    arms = c11.CLAIM.plan("full", Available("full", 60_000, 10_000))
    eps = {c11.LARGE: 1e-3, c11.SMALL: 1e-10, c11.USUAL_SMALL: 1e-10}
    for arm, config in [each for each in arms if each[1].seed == 0]:
        model = build_model(config, in_channels=1, classes=10)
        started = arm == c11.STARTED
        for layer in (model.norm1, model.norm2, model.norm3, model.norm4):
            assert layer.eps == eps.get(arm, 1e-5)
            assert (layer.weight == (1 + 2**-23 if started else 1)).all()
            assert bool(layer.bias.any()) == started
