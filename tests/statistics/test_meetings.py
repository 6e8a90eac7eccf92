"""Ranks that meet: all stop after as many passes, and hear of what one refuses, none waits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.few import few
from tests.statistics import meetings_worker
from tests.together import together


def test_passes_end_together(tmp_path: Path) -> None:
    """With other running statistics in each process, and batches in one of them only."""
    first, second = together(meetings_worker, [200, 0], "start", tmp_path)
    assert first["passes"] == second["passes"] and "raised" not in first
    assert first["passes"][0] == first["passes"][1]  # whatever the former statistics were
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key])


@pytest.mark.parametrize(
    ("scenario", "why"),
    few([
        ("frozen", "a layer with running statistics that is not frozen"),
        ("frozen sharded", "a layer with running statistics that is not frozen"),
        ("frozen consistency sharded", "a layer with running statistics that is not frozen"),
        ("batches", "TypeMismatchError"),
        ("iterator", "re-iterable batches for layerwise=True"),
        ("loss", "OSError: the labels are gone"),
    ], lambda scenario, _: scenario in ("frozen sharded", "iterator", "loss")),
)  # fmt: skip
def test_what_one_refuses_ends_all(scenario: str, why: str, tmp_path: Path) -> None:
    first, second = together(meetings_worker, [3, 3], scenario, tmp_path)
    assert why in second["raised"], second
    assert "a failure in process 1" in first["raised"] and why in first["raised"], first
    if scenario in ("batches", "iterator"):
        assert all(torch.equal(v, meetings_worker.model().state_dict()[k])
                   for k, v in first["state"].items())  # fmt: skip
