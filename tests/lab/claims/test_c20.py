"""C20, and what a claim does with an arm that never learned or runs of another version."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from normkit.lab.claims.c20 import CLAIM
from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.measures.small_batches import BN
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding

Synthetic = Callable[..., Evidence]


def errors(of: Callable[[str, int], float]) -> Callable[[str, RunConfig], Mapping[str, Sequence]]:
    """Runs with this test error by arm and batch size, and a little noise."""

    def values(arm: str, config: RunConfig) -> Mapping[str, Sequence[float]]:
        rng = np.random.default_rng([config.seed, len(arm), config.batch_size])
        return {"test_accuracy": [1 - of(arm, config.batch_size) - float(rng.normal(0, 5e-4))]}

    return values


def test_compares_rises_and_not_errors(synthetic: Synthetic) -> None:
    # GroupNorm is worse everywhere and loses as much as BN.
    values = errors(lambda arm, size: 0.3 + (arm in (BN, "GN")) * 0.2 / size + 0.1 * (arm == "GN"))
    found = finding(CLAIM, synthetic(CLAIM, values), data="invented")
    words = ["confirmed", "too small to matter", "confirmed", "confirmed"]
    assert [each.word for each in found.comparisons if each.decides] == words
    assert found.verdict == "partly, 3 of 4 parts confirmed"


def test_an_arm_that_never_learned_is_no_evidence(synthetic: Synthetic) -> None:
    """No better than guessing at every batch size, GroupNorm loses nothing."""
    values = errors(lambda arm, size: 0.9 if arm == "GN" else 0.2 + (arm == BN) * 0.2 / size)
    evidence = synthetic(CLAIM, values)
    assert finding(CLAIM, evidence, data="invented").word == "confirmed"
    dead = dataclasses.replace(
        evidence,
        planned=tuple(
            dataclasses.replace(each, run=dataclasses.replace(each.run, status="diverged"))
            if each.arm == "GN"
            else each
            for each in evidence.planned
        ),
    )
    found = finding(CLAIM, dead, data="invented")
    assert found.verdict == "partly, 3 of 4 parts confirmed"
    assert [each.word for each in found.comparisons if each.decides] == ["confirmed"] * 3
    assert not found.stale


def test_runs_of_another_versions_arms_say_what_to_do(synthetic: Synthetic) -> None:
    evidence = synthetic(CLAIM, lambda arm, config: {"test_accuracy": [0.5]})
    renamed = tuple(dataclasses.replace(each, arm=f"old {each.arm}") for each in evidence.planned)
    found = finding(CLAIM, dataclasses.replace(evidence, planned=renamed), data="invented")
    assert found.stale
    assert f"normkit lab run {CLAIM.key} --preset" in found.sentence
