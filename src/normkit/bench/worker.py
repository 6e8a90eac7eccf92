"""The process that measures: ``python -m normkit.bench.worker``.

The first line of its input is a JSON object ``{"threads": …, "jobs": [{"job": name, …}, …]}``; its
output is one line of JSON for each job, ``{"job": index, "record": …}`` or ``{…, "error": …}``. It
ends when its input does, so it does not outlive the process that asked.
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
    from normkit.bench.cases import Case
    from normkit.bench.comparing import compare

    about = {**job["case"]}
    about["shape"], about["networks"] = tuple(about["shape"]), tuple(about["networks"])
    options = {name: job[name] for name in ("seconds", "seed", "compiled", "least") if name in job}
    return compare(Case(**about), job["measure"], job["mode"], **options)


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
    """Page faults of one allocation: whether blocks are kept or given back each time."""
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
    """Carry out the jobs that come on the standard input."""
    # The parent answers Ctrl-C, which reaches the whole group, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Compilers may print; only records go where the parent reads.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    import torch

    if asked.get("threads"):
        torch.set_num_threads(asked["threads"])
    for index, job in enumerate(asked["jobs"]):
        answer: dict[str, Any] = {"job": index}
        try:
            answer["record"] = JOBS[job["job"]](job)
        except Exception:  # belongs to this job; the others go on
            answer["error"] = traceback.format_exc()
        out.write(json.dumps(answer) + "\n")
        out.flush()
    # At once, as the thread above still waits for its input.
    out.close()
    os._exit(0)


if __name__ == "__main__":
    main()
