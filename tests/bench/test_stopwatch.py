"""The stopwatch: turns, rounds, intervals. What the time was is tested nowhere."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch
from torch import nn

from normkit.bench import breakdown, layers, limits, memory
from normkit.bench.case_timing import time_case
from normkit.bench.cases import Case
from normkit.bench.stopwatch import Times, median_interval, time_interleaved

CASES = [
    Case("bn", (4, 8, 6, 6), "contiguous", ("a",), 1),
    Case("bn", (4, 8, 6, 6), "channels-last", ("a",), 1, residual=True),
    Case("bn", (16, 12), "contiguous", ("a",), 1),
    Case("gn", (2, 64, 5, 5), "channels-last", ("a",), 1),
    Case("in", (2, 8, 5, 5), "contiguous", ("a",), 1),
    Case("ln", (8, 16), "contiguous", ("a",), 1),
    Case("ln", (2, 8, 5, 5), "channels-last", ("a",), 1),
    Case("rms", (8, 16), "contiguous", ("a",), 1),
]
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_sides_run_in_rotating_order() -> None:
    ran: list[str] = []
    sides = {name: lambda name=name: ran.append(name) for name in "abc"}
    times = time_interleaved(sides, seconds=0.0, min_rounds=4, warmup=1)
    assert times.rounds == 4
    assert ["".join(ran[i : i + 3]) for i in range(0, 15, 3)] == ["abc", "abc", "bca", "cab", "abc"]


def test_garbage_collection_is_off_while_timing() -> None:
    seen: list[bool] = []
    time_interleaved(
        {"a": lambda: seen.append(gc.isenabled()), "b": lambda: None}, seconds=0, min_rounds=2
    )
    assert seen and not any(seen)
    assert gc.isenabled()


def test_precise_ratio_ends_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**9))
    monkeypatch.setattr("normkit.bench.stopwatch.time.perf_counter", lambda: float(next(ticks)))
    times = time_interleaved({"a": lambda: None, "b": lambda: None}, seconds=10**6, max_rounds=500)
    assert times.rounds == 16  # every turn takes one tick, so the first look is enough


def test_intervals_cover_the_median_19_times_in_20() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(400):
        sample = torch.randn(25, generator=generator).tolist()
        _, low, high = median_interval(sample)
        hits += low <= 0 <= high
    assert hits / 400 > 0.93


def test_ratio_is_taken_round_by_round() -> None:
    # The machine slows down tenfold half-way; the ratio does not notice.
    times = Times({"a": (2.0, 2.0, 20.0, 20.0), "b": (1.0, 1.0, 10.0, 10.0)})
    assert times.ratio("a", "b") == (2.0, 2.0, 2.0)


@by_case
@pytest.mark.parametrize("measure", layers.MEASURES)
def test_both_sides_compute_the_same(case: Case, measure: str) -> None:
    given = layers.inputs(case, seed=0, residual=measure == "residual")
    made = layers.sides(case, measure)
    outputs = []
    for layer in made.values():
        arguments = (given.x,) if given.residual is None else (given.x, given.residual)
        y = layer(*arguments)
        outputs.append((y, *torch.autograd.grad(y, [*arguments, *layer.parameters()], given.dy)))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)


@by_case
@pytest.mark.parametrize(("measure", "mode"), [("act", "train"), ("alone", "eval")])
def test_records_are_complete_and_consistent(case: Case, measure: str, mode: str) -> None:
    record = time_case(case, measure, mode, seconds=0.0, min_rounds=3)
    assert record["case"] == case.name
    assert record["rounds"] >= 3
    assert set(record["ms"]) == {"torch", "ours", "copy"}
    assert all(value > 0 for value in record["ms"].values())
    low, high = record["ratio_interval"]
    assert low <= record["ratio"] <= high
    assert record["of_limit"] == pytest.approx(record["limit_copies"] / record["copies"])
    bytes_moved = record["gb_per_s"] * 1e9 * record["ms"]["ours"] / 1e3
    assert bytes_moved == pytest.approx(2 * record["limit_copies"] * case.bytes)


def test_inputs_have_the_layout_of_the_case() -> None:
    given = layers.inputs(CASES[1], seed=0, residual=True)
    assert given.residual is not None
    for tensor in (given.x, given.dy, given.residual, given.copy_target):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    given.copy()
    torch.testing.assert_close(given.copy_target, given.x.detach())


def test_caches_are_read(tmp_path: object) -> None:
    size = limits.cache_bytes(2)
    assert size is None or size > 2**16
    assert limits.cache_bytes(9) is None


def test_peak_memory_counts_live_tensors() -> None:
    def run() -> None:
        first = torch.empty(1000, dtype=torch.uint8)
        del first
        second = torch.empty(3000, dtype=torch.uint8)
        third = torch.empty(2000, dtype=torch.uint8)
        del second, third

    assert memory.peak_bytes(run) == 5000
    # So large that no allocator has it lying about.
    grown = memory.peak_rss_bytes(lambda: torch.ones(128 * 2**20, dtype=torch.uint8))
    assert grown is None or grown > 100 * 2**20


GARBAGE = """
import gc
import torch
from normkit.bench import memory

def run():
    _ = [[] for _ in range(100)]
    return torch.ones(64 * 2**20, dtype=torch.uint8)

cycle = [torch.ones(64 * 2**20, dtype=torch.uint8)]
cycle.append(cycle)
del cycle
gc.set_threshold(1, 1, 1)
print(memory.peak_rss_bytes(run))
"""


def test_garbage_of_others_does_not_count() -> None:
    """Whatever was left behind before, its collection is no memory that the function gave back.

    In a process of its own: in one whose allocator was told to keep memory, none is asked for.
    """
    done = subprocess.run(
        [sys.executable, "-c", GARBAGE], capture_output=True, text=True, check=True
    )
    assert done.stdout == "None\n" or int(done.stdout) > 50 * 2**20


def test_parts_of_a_step_sum_to_it() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(4 * 36, 2),
    )  # fmt: skip
    x = torch.randn(3, 1, 8, 8)
    found = breakdown.step_parts(model, lambda: model(x).square().sum(), lambda: None)
    named = [value for name, value in found.items() if name != "step"]
    assert sum(named) == pytest.approx(found["step"])
    for kind in breakdown.KINDS:
        assert found[f"{kind}_forward"] > 0
        assert found[f"{kind}_backward"] > 0
    # Nothing is left behind in the model.
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
