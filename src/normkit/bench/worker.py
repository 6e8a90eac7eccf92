"""Benchmark process: ``python -m normkit.bench.worker``.

The first line of its input is a JSON object ``{"threads": …, "jobs": [{"job": name, …}, …]}``; its
output is one line of JSON per job, ``{"job": index, "record": …}`` or ``{…, "error": …}``. It
exits when its input closes, so that it does not outlive its parent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["JOBS", "main"]


def _case(job: dict[str, Any]) -> dict[str, Any]:
    from normkit.bench.case_timing import time_case
    from normkit.bench.cases import Case

    fields = {**job["case"]}
    fields["shape"], fields["networks"] = tuple(fields["shape"]), tuple(fields["networks"])
    options = {
        name: job[name] for name in ("seconds", "seed", "compiled", "min_rounds") if name in job
    }
    return time_case(Case(**fields), job["measure"], job["mode"], **options)


def _step(job: dict[str, Any]) -> dict[str, Any]:
    from normkit.bench.steps import measure_step

    return measure_step(job)


def _memory(job: dict[str, Any]) -> dict[str, Any]:
    from normkit.bench.steps import measure_memory

    return measure_memory(job)


def _machine(job: dict[str, Any]) -> dict[str, Any]:
    from normkit.bench.limits import machine

    return machine()


def _faults(job: dict[str, Any]) -> dict[str, Any]:
    """Count page faults per allocation: few if the allocator keeps freed blocks."""
    import resource

    import torch

    def once() -> None:
        torch.empty(job["bytes"], dtype=torch.uint8).fill_(1)

    for _ in range(3):
        once()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        once()
    return {"faults": (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10}


JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "case": _case,
    "step": _step,
    "memory": _memory,
    "machine": _machine,
    "faults": _faults,
}


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Run the jobs read from standard input."""
    # The parent handles Ctrl-C, which reaches the whole group, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Compilers may print; the parent must read nothing but records.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    import torch

    if request.get("threads"):
        torch.set_num_threads(request["threads"])
    for index, job in enumerate(request["jobs"]):
        answer: dict[str, Any] = {"job": index}
        try:
            answer["record"] = JOBS[job["job"]](job)
        except Exception:  # concerns this job only
            answer["error"] = traceback.format_exc()
        out.write(json.dumps(answer) + "\n")
        out.flush()
    # Without joining the thread above, which still waits for input.
    out.close()
    os._exit(0)


if __name__ == "__main__":
    main()
