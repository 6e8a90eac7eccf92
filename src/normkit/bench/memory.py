"""The most memory a function holds at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["peak_bytes", "peak_rss_bytes"]


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes of tensors alive at once during ``run()``, beyond those alive before.

    Exact: torch's profiler notes each block its allocator hands out and takes back. Blocks that
    are alive from before and freed in ``run`` count as below zero.

    >>> import torch
    >>> peak_bytes(lambda: [torch.ones(1000).exp() for _ in range(3)])  # 3 kept, 1 in passing
    16000
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events: Any = profiler.profiler.kineto_results.events()
    steps = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    now = most = 0
    for _, change in sorted(steps, key=lambda step: step[0]):
        now += change
        most = max(most, now)
    return most


def peak_rss_bytes(run: Callable[[], object]) -> int | None:
    """Growth of the process's resident memory at its peak; None where Linux does not tell it.

    It counts what the allocator keeps for later too, so it says more about the allocator.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    before = _status("VmRSS")
    run()
    after = _status("VmHWM")
    return None if before is None or after is None else max(0, after - before)


def _status(name: str) -> int | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None
