"""Measuring processes: the allocator they have, what they answer, how they end."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
from typing import Any

import pytest

from normkit.bench import processes
from normkit.bench.cases import Case
from normkit.errors import StatisticsError

CASE = Case("bn", (4, 8, 6, 6), "contiguous", ("a",), 1)
JOB: dict[str, Any] = {
    "job": "case", "case": dataclasses.asdict(CASE), "measure": "act", "mode": "train",
    "seconds": 0.0, "min_rounds": 3,
}  # fmt: skip
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")


def answers(*jobs: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    return [answer for _, answer in processes.run_jobs(jobs, **options)]


@glibc
def test_tuned_allocator_keeps_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What the caller's own environment says is no part of either.
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    size = 64 * 2**20  # above every threshold that glibc would come to by itself
    job = {"job": "faults", "bytes": size}
    (default,) = answers(job, allocator="default", threads=1)
    (tuned,) = answers(job, allocator="tuned", threads=1)
    assert default["record"]["faults"] > 16  # huge pages may make them few
    assert tuned["record"]["faults"] < default["record"]["faults"] / 8


@pytest.fixture(scope="module")
def answered() -> list[dict[str, Any]]:
    """What one process answers to all of these, as each takes seconds to start."""
    bad = {**JOB, "case": {**JOB["case"], "norm": "none", "shape": (0,)}}
    network = {
        "factory": "normkit.lab.models.forms:form", "network": "lenet5", "options": {"size": 28},
        "shape": [4, 1, 28, 28], "layout": "channels-last", "seconds": 0.0, "min_rounds": 2,
        "parts_rounds": 1,
    }  # fmt: skip
    step, memory = {"job": "step", **network}, {"job": "memory", "side": "ours", **network}
    return answers(bad, JOB, {"job": "machine"}, step, memory, threads=1)


def test_failing_job_does_not_affect_others(answered: list[dict[str, Any]]) -> None:
    assert "Error" in answered[0]["error"]
    assert answered[1]["record"]["case"] == CASE.name
    assert answered[2]["record"]["threads"] == 1


def test_steps_and_memory_of_a_network(answered: list[dict[str, Any]]) -> None:
    step, ours = answered[3:]
    assert "error" not in step, step
    for side in ("torch", "ours"):
        found = step["record"]["parts_ms"][side]
        named = [value for name, value in found.items() if name != "step"]
        assert sum(named) == pytest.approx(found["step"])
        assert found["norm_backward"] > 0
    assert ours["record"]["live_bytes"] > 4 * 28 * 28 * 6 * 4  # the first convolution's output


def test_closing_the_iterator_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(processes.subprocess, "Popen", Noted)
    jobs = processes.run_jobs([JOB] * 10_000, threads=1)
    next(jobs)
    (process,) = started
    assert process.poll() is None
    jobs.close()  # type: ignore[attr-defined]
    assert process.poll() is not None


def test_process_exits_when_its_input_closes() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "normkit.bench.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({"threads": 1, "jobs": [JOB] * 20_000}) + "\n")
    process.stdin.flush()
    process.stdout.readline()
    process.stdin.close()
    try:
        assert process.wait(timeout=30) == 1
    finally:
        process.kill()
        process.stdout.close()


def test_dead_process_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.sys, "executable", "/bin/false")
    with pytest.raises((StatisticsError, BrokenPipeError)):
        answers(JOB)
