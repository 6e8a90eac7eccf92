"""Send jobs to worker processes, each with one allocator setting."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from normkit.errors import StatisticsError, message

__all__ = ["ALLOCATORS", "environment", "run_jobs"]

ALLOCATORS: dict[str, dict[str, str]] = {
    # The system's default: the variables below are removed.
    "default": {},
    # glibc returns blocks above a threshold to the system at once, and pays a page fault for each
    # 4 KiB when it allocates them again. With these thresholds it keeps them.
    "tuned": {
        "MALLOC_MMAP_THRESHOLD_": str(2**40),
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
    },
}
"""Environment variables of each allocator setting."""

_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_",
             "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")  # fmt: skip


def environment(allocator: str) -> Mapping[str, str]:
    """Return the environment of a process with this allocator setting."""
    others = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    return {**others, **ALLOCATORS[allocator]}


def run_jobs(
    jobs: Sequence[Mapping[str, Any]], *, allocator: str = "default", threads: int | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run jobs in a new process; yield each job's index and answer as it arrives.

    An answer has "record" or "error". Closing the iterator, also by an exception or Ctrl-C, ends
    the process.

    Raises:
        StatisticsError: the process died, for example because memory ran out.
    """
    if not jobs:
        return
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "normkit.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
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
                stderr.seek(0)
                lines = stderr.read().strip().splitlines()
                raise StatisticsError(
                    message(
                        f"{len(jobs)} answers from the benchmark process",
                        f"{done} and exit code {code}" + (f" ({lines[-1]})" if lines else ""),
                        "free memory, or exclude large cases with --cases",
                    )
                )
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()
