"""Models whose forward needs all ranks: FSDP of both kinds, with shares of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import normkit as nk
from normkit.statistics import LayerStatistics
from tests.few import few
from tests.statistics import sharded_worker
from tests.together import together


@pytest.mark.parametrize(
    "kind", few(["fsdp2", "ddp", "inner", "fsdp1"], lambda kind: kind == "fsdp2")
)
def test_shares_of_any_size(kind: str, tmp_path: Path) -> None:
    results = together(sharded_worker, [1, 1], kind, tmp_path)
    for name, package in sharded_worker.PACKAGES.items():
        for sizes, layerwise in sharded_worker.WAYS[name]:
            alone = nk.recalibrate(
                sharded_worker.model(package), sharded_worker.batches(),
                samples=None, layerwise=layerwise,
            )  # fmt: skip
            for result in results:
                _compare(result[f"{name} {sizes} {layerwise}"], alone)
        few = sharded_worker.batches(size=5)
        alone = nk.recalibrate(sharded_worker.model(package), few, samples=None)
        assert alone.passes > 1
        for sizes in sharded_worker.FEW[name]:
            for result in results:
                got = result[f"{name} {sizes} few"]
                assert (got["samples"], got["batches"]) == (20, 4)
                for layer, one in alone.layers.items():
                    for a, b in zip(got["layers"][layer][:2], one[:2], strict=True):
                        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        # Both have had one batch by then; and none of what a rank runs along on counts.
        assert all(r[f"{name} samples"]["batches"] == 2 for r in results)
        assert all(r[f"{name} samples"]["samples"] == 24 for r in results)
        for result in results:
            plain, looked = result[f"{name} training"]
            assert all(map(torch.equal, plain, looked))
            assert result[f"{name} unchanged"]
            assert "at least one batch" in result[f"{name} empty"]
            assert all("its statistics are distributed" in e for e in result[f"{name} distributed"])
            one = result[f"{name} alone"]
            assert one == "nothing" if kind == "ddp" else "process_group=False" in one
        # Each by itself, whatever the others have.
        for rank, result in enumerate(results):
            mine = sharded_worker.share([3, 1], rank)
            net = sharded_worker.model(package)
            nk.recalibrate(
                net, [*sharded_worker.share([3, 1], 0)[:1], *sharded_worker.share([3, 1], 1)][:2]
            )
            alone = nk.consistency(net, mine)
            for what, samples in (
                ("consistency", 12 * len(mine)),
                ("of samples", 24 - 12 * rank),
                ("of single values", 12 * len(mine)),
            ):
                assert result[f"{name} {what}"][0] == samples
            if kind == "inner":
                torch.testing.assert_close(
                    result[f"{name} consistency"][1], alone.layers, equal_nan=True
                )
        for what, error in (("failing", "OSError: the disk is gone"), ("wrong", "DataError: ")):
            first, second = (r[f"{name} {what}"] for r in results)
            assert second.startswith(error)
            assert f"a failure in process 1: {error}" in first


def _compare(result: dict[str, Any], alone: Any) -> None:
    assert (result["samples"], result["batches"]) == (48, 4)
    assert list(result["layers"]) == list(alone.layers)
    for name, one in alone.layers.items():
        for a, b in zip(LayerStatistics(*result["layers"][name]), one, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
