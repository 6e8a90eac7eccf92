"""convert(model, "sync", group_size=n) in real processes: statistics of a group, of no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import normkit as nk
from tests.surgery import sync_group_worker
from tests.together import together


@pytest.mark.parametrize("size", [1, 2, 4])
def test_groups_share_statistics(size: int, tmp_path: Path) -> None:
    sizes = [3, 5, 4, 2]
    results = together(sync_group_worker, sizes, str(size), tmp_path)
    for start in range(0, len(sizes), size):
        ranks = range(start, start + size)
        plain = sync_group_worker.network()
        expected = plain(torch.cat([sync_group_worker.share(r, sizes[r]) for r in ranks]))
        torch.testing.assert_close(
            torch.cat([results[r]["y"] for r in ranks]), expected, rtol=1e-4, atol=1e-5
        )
        for r in ranks:
            torch.testing.assert_close(results[r]["state"], dict(plain.state_dict()))
    for result in results:
        assert f"in groups of {size} processes" in result["text"] and result["back"]
        assert "divides the 4 processes" in result["3 of nodes of 0"]
        assert "within a node of 3 processes" in result["2 of nodes of 3"]
        assert "at least 1" in result["0 of nodes of 0"]
        assert "one process" in result["solving"]


def test_groups_need_processes() -> None:
    layer = torch.nn.BatchNorm2d(3)
    with pytest.raises(nk.OptionError, match="init_process_group first"):
        nk.convert(layer, "sync", group_size=2)
    with pytest.raises(nk.OptionError, match='group_size with to="sync" alone'):
        nk.convert(layer, "batch", group_size=2)
    assert type(layer) is torch.nn.BatchNorm2d
