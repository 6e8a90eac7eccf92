"""Traffic of recalibrate in several processes: as docs/scale.md computes it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import normkit as nk
from benchmarks import statistics_scale as scale
from normkit.statistics.processes.ranks import Ranks
from tests.together import run

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
HEADER = 48  # bytes that gloo puts before each write


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs the kernel's account")
def test_traffic_matches_formulas(tmp_path: Path) -> None:
    ranks = [(rank, 4, str(tmp_path / "meeting"), tmp_path) for rank in range(4)]
    assert run(scale.worker, ranks) == [0] * 4
    channels = scale.WIDTH * scale.DEPTH
    met = scale.meetings(scale.BATCHES)
    for name, sent in scale.means(tmp_path, 4).items():
        way, ranks = name.split()
        net = sent["bytes"] - HEADER * sent["messages"]
        if way == "reduced":
            formula = scale.reduced(channels, scale.DEPTH, met, 1, int(ranks))
            merge = channels * scale.PER_CHANNEL + scale.DEPTH * scale.PER_LAYER
            assert sent["payload"] == met * scale.STATUS + merge
            assert net == pytest.approx(formula.bytes, rel=0.01)
            # Each message in two parts, and two writes that announce a part.
            assert sent["messages"] <= 6 * formula.messages
        else:
            formula = scale.gathered(channels, scale.DEPTH, scale.BATCHES, int(ranks))
            assert net == pytest.approx(formula.bytes, rel=0.03)


def test_page_has_the_arithmetic() -> None:
    assert scale.table() in PAGE.read_text()


def test_traffic_of_a_rank_is_bounded() -> None:
    few, many = (scale.reduced(26_560, 53, 8, 1, ranks).bytes for ranks in (8, 10_000))
    assert many < 1.2 * few
    old = [scale.gathered(26_560, 53, 200, ranks).bytes for ranks in (8, 10_000)]
    assert old[1] > 1_000 * old[0]


class IdenticalRanks(Ranks):
    """A process among many that all have what it has: sums are products."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.payload, self.reductions = size, 0, 0

    def sum(self, values: Tensor) -> Tensor:
        self.payload += values.numel() * values.element_size()
        self.reductions += 1
        return values * self.size


def test_shared_layers_go_by_own_samples(monkeypatch: Any) -> None:
    """Their estimates are this process's, and so are the samples they are told with."""
    module = importlib.import_module("normkit.statistics.recalibrate")
    told: list[int] = []

    def shared_layers(estimates: Any, layers: Any, samples: int) -> list[Any]:
        told.append(samples)
        return []

    monkeypatch.setattr(module, "ranks_of", lambda _: IdenticalRanks(8))
    monkeypatch.setattr(module, "shared_layers", shared_layers)
    nk.recalibrate(scale.network(), torch.randn(320, scale.WIDTH).split(32), progress=False)
    assert told == [320]


@pytest.mark.parametrize("ranks", scale.RANKS)
@pytest.mark.parametrize("samples", [10_000, None])
def test_simulated_ranks(ranks: int, samples: int | None, monkeypatch: Any) -> None:
    """All that is sent is what the page says, and the statistics are those of all shares."""
    batches = list(torch.randn(1280, scale.WIDTH).split(32))
    met, count = (
        scale.meetings_to(samples, 32, ranks) if samples else (scale.meetings(40), len(batches))
    )
    alone = nk.recalibrate(scale.network(), batches[:count], samples=None)
    simulated = IdenticalRanks(ranks)
    module = importlib.import_module("normkit.statistics.recalibrate")
    monkeypatch.setattr(module, "ranks_of", lambda _: simulated)
    result = nk.recalibrate(scale.network(), batches, samples=samples, progress=False)
    assert (result.samples, result.batches) == (32 * count * ranks, count * ranks)
    channels = scale.WIDTH * scale.DEPTH
    merge = channels * scale.PER_CHANNEL + scale.DEPTH * scale.PER_LAYER
    assert simulated.payload == met * scale.STATUS + merge
    assert simulated.reductions == met + 4
    for name, layer in alone.layers.items():
        merged = result.layers[name]
        assert merged.count == ranks * layer.count
        assert merged.batches == ranks * layer.batches
        # From standard errors with U − 1 in the denominator, of as many times more units.
        if count > 1:  # else alone has no spread between batches
            assert merged.bias == pytest.approx(layer.bias, rel=0.05)
        torch.testing.assert_close(merged.mean, layer.mean, rtol=1e-12, atol=1e-12)
        # The same sum of squares over ranks × n − 1 values in place of ranks × (n − 1).
        bessel = (merged.count - 1) / merged.count * layer.count / (layer.count - 1)
        torch.testing.assert_close(merged.variance * bessel, layer.variance, rtol=1e-12, atol=0)
