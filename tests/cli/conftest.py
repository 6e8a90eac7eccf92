"""A study small enough to be run in a test."""

from __future__ import annotations

import dataclasses

import pytest

from normkit.lab import data, judge
from normkit.lab.claims import c05, registry
from normkit.lab.claims.claim import Arms, Available, Claim, Preset
from tests.cli.touring import claims as touring_claims
from tests.cli.touring import small


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

    claims = touring_claims()
    shown(claims, monkeypatch)
    return claims
