"""Run a benchmark's jobs and show progress."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import progress
from rich.console import Console

from normkit.bench.processes import run_jobs
from normkit.errors import NormkitError

__all__ = ["Measurement"]

LINE_SECONDS = 15.0


@dataclasses.dataclass
class Measurement:
    """Benchmark in progress; records collected so far are kept when it is interrupted."""

    allocators: Sequence[str]
    threads: int | None
    jobs: Sequence[Mapping[str, Any]]
    step_jobs: Sequence[Mapping[str, Any]]
    step_allocators: Sequence[str]
    out: Console
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    cases: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    interrupted: bool = False
    _done: int = 0
    _last_line: float = dataclasses.field(default_factory=time.monotonic)

    def run(self) -> None:
        """Run all jobs; return early after Ctrl-C or when a process dies."""
        bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=self.out,
            transient=True,
            disable=not self.out.is_terminal,
        )
        total = len(self.jobs) * len(self.allocators)
        total += len(self.step_jobs) * len(self.step_allocators)
        self._bar = (bar, bar.add_task("measuring", total=total), total)
        try:
            with bar:
                for allocator in self.allocators:
                    self._layers(allocator)
                for allocator in self.step_allocators:
                    self._steps(allocator)
        except KeyboardInterrupt:
            self.interrupted = True
        except NormkitError as error:
            self.failures.append(str(error))

    def _layers(self, allocator: str) -> None:
        jobs = [{"job": "machine"}, *self.jobs]
        for index, answer in run_jobs(jobs, allocator=allocator, threads=self.threads):
            job = jobs[index]
            if job["job"] == "machine":
                self.machine = answer["record"]
                continue
            self._advance(f"layers, {allocator} allocator")
            size = "×".join(map(str, job["case"]["shape"]))
            self._keep(self.cases, allocator, answer, f"{job['case']['norm']} {size}")

    def _steps(self, allocator: str) -> None:
        for index, answer in run_jobs(self.step_jobs, allocator=allocator, threads=self.threads):
            job = self.step_jobs[index]
            self._advance(f"training steps, {allocator} allocator")
            if "record" in answer:
                answer["record"]["peak"] = self._peak(job, allocator)
            self._keep(self.steps, allocator, answer, f"step of {job['network']}")

    def _peak(self, job: Mapping[str, Any], allocator: str) -> dict[str, Any] | None:
        """Return peak memory of both sides, each in a new process."""
        peak = {}
        for side in ("torch", "ours"):
            memory_jobs = [{**job, "job": "memory", "side": side}]
            for _, answer in run_jobs(memory_jobs, allocator=allocator, threads=self.threads):
                if not self._keep([], allocator, answer, f"memory of {job['network']}"):
                    return None
                peak[side] = answer["record"]
        return peak

    def _advance(self, description: str) -> None:
        bar, task, total = self._bar
        bar.update(task, advance=1, description=description)
        self._done += 1
        if not self.out.is_terminal and time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            self.out.print(f"{self._done} of {total}")

    def _keep(
        self, records: list[dict[str, Any]], allocator: str, answer: Mapping[str, Any], name: str
    ) -> bool:
        if "error" in answer:
            last = answer["error"].strip().splitlines()[-1]
            self.failures.append(f"{name}: {last}")
            return False
        records.append({**answer["record"], "allocator": allocator})
        return True
