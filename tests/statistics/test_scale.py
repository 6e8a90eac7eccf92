"""Traffic of recalibrate in several processes: as docs/scale.md computes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import statistics_scale as scale

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
HEADER = 48  # bytes that gloo puts before each write


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs the kernel's account")
def test_traffic_matches_formulas() -> None:
    channels = scale.WIDTH * scale.DEPTH
    met = scale.meetings(scale.BATCHES)
    for name, sent in scale.measure(4).items():
        way, ranks = name.split()
        net = sent["bytes"] - HEADER * sent["messages"]
        if way == "reduced":
            formula = scale.reduced(channels, met, 1, int(ranks))
            assert sent["payload"] == met * scale.STATUS + channels * scale.PER_CHANNEL
            assert net == pytest.approx(formula.bytes, rel=0.01)
            # Each message in two parts, and two writes that announce a part.
            assert sent["messages"] <= 6 * formula.messages
        else:
            formula = scale.gathered(channels, scale.DEPTH, scale.BATCHES, int(ranks))
            assert net == pytest.approx(formula.bytes, rel=0.03)


def test_page_has_the_arithmetic() -> None:
    assert scale.table() in PAGE.read_text()


def test_traffic_of_a_rank_is_bounded() -> None:
    few, many = (scale.reduced(26_560, 8, 1, ranks).bytes for ranks in (8, 10_000))
    assert many < 1.2 * few
    old = [scale.gathered(26_560, 53, 200, ranks).bytes for ranks in (8, 10_000)]
    assert old[1] > 1_000 * old[0]
