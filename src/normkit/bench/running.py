"""Sends jobs to measuring processes, each with the allocator it is to have."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from normkit.errors import StatisticsError, explain

__all__ = ["ALLOCATORS", "environment", "run_jobs"]

ALLOCATORS: dict[str, dict[str, str]] = {
    # As the system comes; the variables below are taken out.
    "default": {},
    # glibc gives blocks above a threshold back at once and takes a page fault for each 4 KiB
    # of them the next time. With these thresholds it keeps what it has.
    "tuned": {
        "MALLOC_MMAP_THRESHOLD_": str(2**40),
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
    },
}
"""Environment variables of each allocator setting."""

_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_",
             "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")  # fmt: skip


def environment(allocator: str) -> Mapping[str, str]:
    """The environment of a process with this allocator setting."""
    kept = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    return {**kept, **ALLOCATORS[allocator]}


def run_jobs(
    jobs: Sequence[Mapping[str, Any]], *, allocator: str = "default", threads: int | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Carry out jobs in one new process; yields each job's index and answer as it comes.

    An answer has "record" or "error". Leaving the loop early, by an exception or Ctrl-C too, ends
    the process.

    Raises:
        StatisticsError: the process died, for example for want of memory.
    """
    if not jobs:
        return
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        process = subprocess.Popen(
            [sys.executable, "-m", "normkit.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=dict(environment(allocator)),
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"threads": threads, "jobs": list(jobs)}) + "\n")
            process.stdin.flush()
            done = 0
            for line in process.stdout:
                answer = json.loads(line)
                done += 1
                yield answer.pop("job"), answer
            code = process.wait()
            if done < len(jobs):
                complaints.seek(0)
                said = complaints.read().strip().splitlines()
                raise StatisticsError(
                    explain(
                        f"a measuring process answers all of its {len(jobs)} jobs",
                        f"{done} and exit code {code}" + (f" ({said[-1]})" if said else ""),
                        "see that memory suffices, or leave out large cases with --cases",
                    )
                )
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()
