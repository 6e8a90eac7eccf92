"""The prepared script for a GPU (benchmarks/gpu.py), as far as a machine without one can run it."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import normkit as nk
from benchmarks import gpu
from benchmarks.gpu_parts import budget, cases, correctness, networks, timing
from benchmarks.gpu_parts.budget import Budget
from benchmarks.gpu_parts.page import limits, page
from benchmarks.gpu_parts.run import Run
from normkit.bench import limits as machine_limits

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
MACHINE = {"card": "no card", "torch": torch.__version__}


@pytest.mark.parametrize("module", [budget, cases, timing], ids=lambda m: m.__name__)
def test_docstrings(module: Any) -> None:
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_thirty_shapes_and_rows() -> None:
    rows = [case for case in cases.CASES if case.norm in ("ln", "rms")]
    assert (len(cases.CASES) - len(rows), len(rows)) == (30, 2)
    assert any(case.norm == "gn" and case.shape[0] == 1 for case in cases.CASES)
    assert len({str(case) for case in cases.CASES}) == len(cases.CASES)


def test_passes_are_those_of_the_cpu_and_second_reads() -> None:
    """Against the copies that the benchmark of CPUs counts, which leave out what is read twice."""
    for case in cases.CASES:
        if case.norm == "bn" and not case.residual:
            # x again in forward; x and dy again in backward.
            assert case.passes("training") == 2 * machine_limits.training_copies(False) + 3


def test_a_wrong_layer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = correctness.KINDS["GroupNorm"]
    wrong = right._replace(ours=lambda c, act: nk.GroupNorm(2, c, eps=0.1, act=act))
    monkeypatch.setattr(correctness, "KINDS", {"GroupNorm": wrong})
    result = correctness.check_all(CPU, Budget(60), 60, few=True)
    assert result["checked"] == result["problems"] == 6
    assert len(result["failures"]) == 6
    monkeypatch.setattr(correctness, "KINDS", {"GroupNorm": right})
    assert correctness.check_all(CPU, Budget(60), 60, few=True)["failures"] == []


def test_every_problem_is_right_on_this_machine() -> None:
    result = correctness.check_all(CPU, Budget(600), 600, few=False)
    assert result["failures"] == []
    assert result["checked"] == result["problems"] > 100


def test_wrong_results_end_the_run_before_any_speed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = correctness.KINDS["LayerNorm"]
    wrong = right._replace(ours=lambda c, act: nk.LayerNorm(c, eps=0.1, act=act))
    monkeypatch.setattr(correctness, "KINDS", {"LayerNorm": wrong})
    assert Run(CPU, tmp_path, 60, True, MACHINE).all() == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["parts"]["correctness"]["verdict"] == "FAIL"
    assert (results["layers"], results["steps"], results["complete"]) == ([], [], False)
    assert "WRONG LayerNorm" in capsys.readouterr().out


def _record(**fields: Any) -> dict[str, Any]:
    record = {
        "case": "bn 1×2", "network": "x", "norm": "bn", "batch": 1, "bytes": 10**8,
        "residual": False, "layout": "contiguous", "mode": "training", "passes": 8,
        "ms": {"torch": 2.0, "ours": 1.0, "copy": 0.2}, "ratios": {"torch": [2.0, 1.9, 2.1]},
        "rounds": 10, "computed_by": "something", "gb_per_s": 100.0, "of_copy": 0.85,
    }  # fmt: skip
    return record | fields


def test_limits() -> None:
    slow = {"ratios": {"torch": [3.0, 3.0, 3.0]}, "norm": "gn", "of_copy": 0.5, "bytes": 64}
    records = [
        _record(), _record(layout="channels-last", ratios={"torch": [0.9, 0.9, 0.9]}),
        _record(**slow), _record(mode="forward", of_copy=0.1, ratios={"torch": [0.1, 0.1, 0.1]}),
        _record(residual=True, ratios={"torch": [0.1, 0.1, 0.1]}),
    ]  # fmt: skip
    assert [(each.word, round(each.value or 0, 2)) for each in limits(records)] == [
        ("FAIL", 3.0), ("pass", 2.0), ("FAIL", 0.9), ("pass", 0.85)
    ]  # fmt: skip
    assert {each.word for each in limits([])} == {"not measured"}


def test_page_names_the_card_and_what_was_skipped() -> None:
    step = {
        "network": "ResNet-50", "shape": [2, 3], "layout": "contiguous", "compiled": False,
        "ms": {"torch": 2.0, "ours": 1.0}, "ratio": [2.0, 1.5, 2.5], "peak_bytes": {},
    }  # fmt: skip
    text = page(
        {
            "machine": {"card": "Card 9", "driver": "1"}, "toy": False, "complete": True,
            "parts": {"layers": {"verdict": "FAIL", "detail": "a | b\nc"}},
            "layers": [_record()], "compiled": [], "steps": [step], "skipped": ["lab: no time"],
        }
    )  # fmt: skip
    for line in ("# Layers on Card 9", "| driver | 1 |", "| layers | FAIL | a \\| b c |",
                 "- lab: no time", "2.00 [1.50, 2.50]"):  # fmt: skip
        assert line in text
    assert "Toy" not in text


@pytest.mark.parametrize("compiler", [None, pytest.param("eager", marks=pytest.mark.slow)])
def test_both_sides_of_a_network_start_alike(compiler: str | None) -> None:
    for network in networks.NETWORKS:
        record = networks.time_steps(
            network, "contiguous", CPU, timing.clock(CPU), seconds=0.0, toy=True,
            compiler=compiler, min_rounds=1,
        )  # fmt: skip
        assert record["losses"]["ours"] == pytest.approx(record["losses"]["torch"], rel=0.01)


def test_published_sizes() -> None:
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in networks.ResNet50(side).parameters())
                 for side in ("torch", "ours")]  # fmt: skip
    assert sizes == [25_557_032] * 2  # as torchvision's


def _script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments], cwd=ROOT, check=False, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip


class _Event:
    """An event of a device whose clock advances by 3 ms each time that something is recorded."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.complete = False

    def record(self) -> None:
        _Event.now += 3.0
        self.at = _Event.now

    def synchronize(self) -> None:
        self.complete = True

    def elapsed_time(self, end: _Event) -> float:
        assert end.complete
        return end.at - self.at


def test_clock_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By stand-ins for a GPU: the cache is overwritten first, and times are between events."""
    junk = torch.ones(4, dtype=torch.uint8)
    monkeypatch.setattr(timing.torch, "empty", lambda *_, **__: junk)
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    measure = timing.clock(torch.device("cuda"))
    seen = []
    assert measure(lambda: seen.append(int(junk.sum()))) == pytest.approx(3e-3)
    assert seen == [0]


def test_without_cudnn_computes_the_same() -> None:
    case = cases.CASES[2].toy()
    tensors, layer = cases.inputs(case, "contiguous", CPU), cases.sides(case, CPU)["torch"]
    y = timing._WithoutCuDNN(layer)(tensors.x, tensors.residual)
    torch.testing.assert_close(y, layer(tensors.x, tensors.residual))


def test_page_is_told_which_card(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="Card 9", total_memory=2**37, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(gpu, "_driver", lambda: "580.1")
    about = gpu._machine()
    assert (about["card"], about["memory"], about["driver"]) == ("Card 9", "128 GiB", "580.1")
    assert about["torch"] == torch.__version__


def test_driver_is_unknown_without_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu._driver() == "unknown"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_way_out_is_named() -> None:
    done = _script()
    assert done.returncode == 2
    assert "--device cpu --interpret --toy" in done.stderr


@pytest.mark.slow
@pytest.mark.minutes
def test_whole_script_at_toy_sizes(tmp_path: Path) -> None:
    budget = ("--seconds", "1200")  # other tests run meanwhile
    done = _script("--device", "cpu", "--interpret", "--toy", "--out", str(tmp_path), *budget)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["complete"]
    assert {part["verdict"] for part in results["parts"].values()} == {"pass"}
    assert results["skipped"] == []
    shown = _script("--page", str(tmp_path / "results.json"))
    assert shown.stdout == (tmp_path / "results.md").read_text()
    assert "Toy sizes" in shown.stdout
