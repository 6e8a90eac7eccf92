"""recalibrate over gloo: several processes end where one process with all batches does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import normkit as nk
from normkit.statistics import LayerStatistics
from tests.few import few
from tests.statistics import passes_worker
from tests.together import together


def _alone(count: int, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    net = passes_worker.model()
    found = nk.recalibrate(net, passes_worker.batches(count), **{"samples": None, **options})
    return found, net.state_dict()


def _compare(results: list[dict[str, Any]], alone: Any, state: dict[str, torch.Tensor]) -> None:
    for result in results:
        assert "raised" not in result, result
        for name, one in alone.layers.items():
            # The units are the batches, whoever has them: their errors are the same too.
            for a, b in zip(LayerStatistics(*result["layers"][name]), one, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        for key, value in result["state"].items():
            torch.testing.assert_close(value, state[key.removeprefix("module.")], rtol=3e-7, atol=0)
            assert torch.equal(value, results[0]["state"][key]), key  # bit for bit between them


SIZES = [6, 6], [11, 1], [12, 0], [0, 12], [5, 0, 7]


@pytest.mark.parametrize("sizes", few(SIZES, lambda sizes: sizes in ([0, 12], [5, 0, 7])), ids=str)
@pytest.mark.parametrize("scenario", ["plain", "layerwise"])
def test_shares_equal_one_process(sizes: list[int], scenario: str, tmp_path: Path) -> None:
    alone, state = _alone(12, layerwise=scenario == "layerwise")
    results = together(passes_worker, sizes, scenario, tmp_path)
    _compare(results, alone, state)
    assert all(r["told"] == (144, 12, alone.passes) for r in results)


def test_ddp_wrapper(tmp_path: Path) -> None:
    """Its own forward would wait for the others, who have more batches or fewer."""
    alone, state = _alone(12)
    _compare(together(passes_worker, [10, 2], "ddp", tmp_path), alone, state)


def test_samples_count_over_all_ranks(tmp_path: Path) -> None:
    results = together(passes_worker, [6, 6], "samples", tmp_path)
    assert all(r["told"][:2] == (72, 6) for r in results)
    assert all(torch.equal(r["state"]["1.running_mean"], results[0]["state"]["1.running_mean"])
               for r in results)  # fmt: skip


def test_ranks_stop_together_at_tolerance(tmp_path: Path) -> None:
    results = together(passes_worker, [30, 5, 0], "tolerance", tmp_path)
    assert len({r["told"] for r in results}) == 1
    assert results[0]["told"][1] < 35
    assert results[0]["error"] < 0.4
    for key, value in results[0]["state"].items():
        assert all(torch.equal(value, r["state"][key]) for r in results)


def test_failure_on_one_rank_ends_all(tmp_path: Path) -> None:
    """Nobody waits for ever, nothing is changed anywhere, and each says what happened."""
    results = together(passes_worker, [4, 4], "broken", tmp_path)
    assert results[1]["raised"] == "OSError: the disk is gone"
    assert "a failure in process 1: OSError: the disk is gone" in results[0]["raised"]
    untouched = passes_worker.model().state_dict()
    for r in results:
        assert all(torch.equal(value, untouched[key]) for key, value in r["state"].items())
        assert r["training"]


def test_all_shares_empty_is_an_error(tmp_path: Path) -> None:
    for result in together(passes_worker, [0, 0], "plain", tmp_path):
        assert "at least one batch" in result["raised"]


def test_process_group_false_measures_one_rank(tmp_path: Path) -> None:
    results = together(passes_worker, [3, 5], "alone", tmp_path)
    assert [r["told"] for r in results] == [(36, 3, 1), (60, 5, 1)]
