"""Runs a benchmark's jobs and shows how it comes along."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import progress
from rich.console import Console

from normkit.bench.running import run_jobs
from normkit.errors import NormkitError

__all__ = ["Measurement"]

LINE_SECONDS = 15.0


@dataclasses.dataclass
class Measurement:
    """A benchmark in progress; what it has measured so far stays when it is interrupted."""

    allocators: Sequence[str]
    threads: int | None
    jobs: Sequence[Mapping[str, Any]]
    step_allocators: Sequence[str]
    out: Console
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    cases: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    interrupted: bool = False

    def run(self) -> None:
        """Measure everything; returns early after Ctrl-C."""
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
        task = bar.add_task("measuring", total=total)
        done, said = 0, time.monotonic()

        try:
            with bar:
                for _, answer in run_jobs([{"job": "machine"}], threads=self.threads):
                    self.machine = answer["record"]
                for allocator in self.allocators:
                    for index, answer in run_jobs(
                        self.jobs, allocator=allocator, threads=self.threads
                    ):
                        self._take(self.jobs[index], allocator, answer)
                        done += 1
                        bar.update(task, completed=done, description=f"{allocator} allocator")
                        if not self.out.is_terminal and time.monotonic() - said > LINE_SECONDS:
                            said = time.monotonic()
                            self.out.print(f"{done} of {total}")
        except KeyboardInterrupt:
            self.interrupted = True
        except NormkitError as error:
            self.failures.append(str(error))

    def _take(self, job: Mapping[str, Any], allocator: str, answer: Mapping[str, Any]) -> None:
        if "error" in answer:
            last = answer["error"].strip().splitlines()[-1]
            self.failures.append(f"{job['case']['shape']} {job['measure']}: {last}")
        else:
            self.cases.append({**answer["record"], "allocator": allocator})
