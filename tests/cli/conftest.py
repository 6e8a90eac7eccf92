"""A study small enough to be run in a test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from normkit.lab import data, judge
from normkit.lab.claims import c01, c05, registry
from normkit.lab.claims.claim import Arms, Available, Claim, Preset
from normkit.lab.config import RunConfig


def small(config: RunConfig) -> RunConfig:
    """Return the same run on a few images: less than a second."""
    return dataclasses.replace(
        config,
        train_images=128,
        test_images=50,
        batch_size=64,
        epochs=2,
        evaluations=tuple((name, 128, 64) for name, *_ in config.evaluations),
    )


def shown(claims: dict[str, Claim], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the lab have these claims alone."""
    monkeypatch.setattr(registry, "all_claims", lambda: claims)
    monkeypatch.setattr(judge, "all_claims", lambda: claims)
    # What is here is enough; no test fetches anything.
    load = data.load
    monkeypatch.setattr(data, "load", lambda name, **_: load(name, offline=True))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, forked_workers: None) -> Claim:
    """C5 on a few images: four runs of less than a second."""

    def plan(preset: Preset, available: Available) -> Arms:
        arms = c05.CLAIM.plan(preset, available)
        return [(arm, small(config)) for arm, config in arms if config.seed < 2]

    claim = dataclasses.replace(c05.CLAIM, plan=plan)
    shown({"C5": claim}, monkeypatch)
    return claim


@pytest.fixture
def touring(tiny: Claim, monkeypatch: pytest.MonkeyPatch) -> dict[str, Claim]:
    """A tour of two claims with four runs each."""

    def plan(claim: Claim) -> Callable[[Preset, Available], Arms]:
        def runs(preset: Preset, available: Available) -> Arms:
            if preset != "tour":
                return []
            arms = claim.plan("quick", available)
            return [(arm, small(config)) for arm, config in arms if config.seed < 2]

        return runs

    claims = {
        claim.key: dataclasses.replace(claim, plan=plan(claim)) for claim in (c01.CLAIM, c05.CLAIM)
    }
    shown(claims, monkeypatch)
    return claims
