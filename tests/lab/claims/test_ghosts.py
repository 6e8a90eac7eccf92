"""C16 and C17: each error is read with its own statistics, and published errors stand in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from normkit.lab.claims import c16, c17
from normkit.lab.claims.claim import Available, Evidence
from normkit.lab.claims.measures import ghosts
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig


def accuracies(arm: str, config: RunConfig) -> Mapping[str, Sequence[float | None]]:
    found = {"epoch_train_accuracy": [0.9], "test_accuracy": [0.8]}
    for condition in config.final_evaluations:
        name = named("test_accuracy", condition)
        found[name] = [0.7 if condition[0] == "population" else 0.75]
    return found


def test_each_error_has_its_statistics(synthetic: Callable[..., Evidence]) -> None:
    evidence = synthetic(c17.CLAIM, accuracies)
    plain = evidence.of(ghosts.BN)[0]
    frozen = evidence.of(ghosts.FROZEN)[0]
    read = [each.read(plain) for each in (ghosts.TRAINING, ghosts.BATCH, ghosts.POPULATION)]
    assert read == pytest.approx([0.1, 0.25, 0.3])
    # A frozen run is tested with the population statistics that it trained with.
    assert ghosts.POPULATION.read(frozen) == pytest.approx(0.2)
    assert ghosts.BATCH.read(frozen) is None
    assert c17.by_freezing(2).by_seed(evidence)[0] == pytest.approx(0.1)


def test_published_errors_stand_at_their_sizes(synthetic: Callable[..., Evidence]) -> None:
    evidence = synthetic(c16.CLAIM, accuracies)
    table = ghosts.table("test, population statistics")(evidence)
    assert table.columns == ("error", "whose", "2", "16", "256")
    assert table.rows[1] == ("test, population statistics", "published", 32.5, 23.5, 23.6)


def test_c17_shares_the_runs_of_c16() -> None:
    data = Available("full", 60_000, 10_000)
    first, second = (
        {config.key for _, config in claim.plan("quick", data)} for claim in (c16.CLAIM, c17.CLAIM)
    )
    assert first < second
