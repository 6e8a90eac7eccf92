"""A study small enough to be run in a test."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from normkit.lab import data, judge
from normkit.lab.claims import c05, registry
from normkit.lab.claims.claim import Arms, Available, Claim, Preset


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, forked_workers: None) -> Iterator[Claim]:
    """C5 on a few images: four runs of less than a second."""

    def plan(preset: Preset, available: Available) -> Arms:
        return [
            (
                arm,
                dataclasses.replace(
                    config,
                    train_images=128,
                    test_images=50,
                    batch_size=64,
                    epochs=2,
                    evaluations=tuple((name, 128, 64) for name, *_ in config.evaluations),
                ),
            )
            for arm, config in c05.CLAIM.plan(preset, available)
            if config.seed < 2
        ]

    claim = dataclasses.replace(c05.CLAIM, plan=plan)
    monkeypatch.setattr(registry, "all_claims", lambda: {"C5": claim})
    monkeypatch.setattr(judge, "all_claims", lambda: {"C5": claim})
    # What is here is enough; no test fetches anything.
    load = data.load
    monkeypatch.setattr(data, "load", lambda name, **_: load(name, offline=True))
    yield claim
