"""``normkit bench`` from option to file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from normkit.bench import planning, processes
from normkit.cli import bench_run
from normkit.cli.app import app
from normkit.errors import StatisticsError

TINY = ("--cases", "bn/dense/64x512/*", "--allocator", "default", "--threads", "1")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = planning.Preset(0.0, 1, False, (), 0.0, "no time")
    monkeypatch.setitem(planning.PRESETS, "quick", quick)


def bench(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", "--preset", "quick", *arguments])


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured before the options were checked")

    monkeypatch.setattr(bench_run, "run_jobs", refuse)


@pytest.mark.usefixtures("tiny")
def test_from_options_to_figures(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    done = bench(*TINY, "--out", str(path))
    assert done.exit_code == 0, done.output
    assert "BatchNorm + ReLU, forward and backward, default allocator" in done.output
    results = json.loads(path.read_text())
    assert results["complete"] is True
    assert {(r["measure"], r["mode"]) for r in results["cases"]} == {
        ("act", "train"), ("alone", "train"), ("act", "eval"),
    }  # fmt: skip
    assert results["machine"]["threads"] == 1
    again = bench("--from", str(path))
    assert again.exit_code == 0
    assert "bn dense 64×512" in again.output
    assert "target" not in again.output
    as_data = bench("--from", str(path), "--json")
    assert json.loads(as_data.stdout) == results


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--norm", "batch"], "normalizers out of bn"),
        (["--cases", "vgg"], "none for 'vgg'"),
        (["--out", "/nowhere/r.json"], "existing, writable folder"),
        (["--out", "."], "a file name in an existing"),
        (["--from", "/nowhere/r.json"], "a JSON file of results"),
        (["--threads", "0"], "greater than or equal to 1"),
        (["--allocator", "jemalloc"], "jemalloc"),
    ],
)
def test_wrong_options_measure_nothing(arguments: list[str], message: str) -> None:
    done = bench(*arguments)
    assert done.exit_code == 2
    # Boxes are drawn around some messages, in the middle of a sentence.
    said = " ".join(done.output.replace("│", " ").split())
    assert message in said


@pytest.mark.usefixtures("nothing_runs")
def test_listing_measures_nothing() -> None:
    done = bench("--list")
    assert done.exit_code == 0
    assert "bn/dense/256x120/contiguous" in done.output.split()


@pytest.mark.usefixtures("tiny")
def test_interruption_keeps_results_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(jobs: Any, **options: Any) -> Any:
        yield from processes.run_jobs(jobs[:2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_run, "run_jobs", interrupted)
    path = tmp_path / "r.json"
    done = bench(*TINY, "--out", str(path))
    assert done.exit_code == 130
    assert "Stopped" in done.output
    results = json.loads(path.read_text())
    assert results["complete"] is False
    assert len(results["cases"]) == 1


def test_interruption_before_the_first_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_run, "run_jobs", interrupted)
    done = bench(*TINY, "--out", str(tmp_path / "r.json"))
    assert done.exit_code == 130
    assert not list(tmp_path.iterdir())


def test_dead_process_is_reported_with_results_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dies(jobs: Any, **options: Any) -> Any:
        yield from processes.run_jobs(jobs[:2], **options)
        raise StatisticsError("the benchmark process died")

    monkeypatch.setattr(bench_run, "run_jobs", dies)
    done = bench(*TINY)
    assert done.exit_code == 1
    assert "the benchmark process died" in done.output
    assert "bn dense 64×512" in done.output
