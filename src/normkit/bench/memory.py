"""Peak memory of a function."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["live_bytes", "peak_bytes", "peak_rss_bytes"]


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the peak bytes of live tensors during ``run()``, beyond those alive before.

    Exact: torch's profiler records each allocation and release. Blocks allocated before and freed
    in ``run`` count as negative.

    >>> import torch
    >>> peak_bytes(lambda: [torch.ones(1000).exp() for _ in range(3)])  # 3 results, 1 temporary
    16000
    """
    live = peak = 0
    for change in _changes(run):
        live += change
        peak = max(peak, live)
    return peak


def live_bytes(run: Callable[[], object]) -> int:
    """Return the bytes of tensors alive after ``run()`` that were not before, its result's too.

    Exact, as :func:`peak_bytes`.

    >>> import torch
    >>> live_bytes(lambda: torch.ones(1000).exp())
    4000
    """
    return sum(_changes(run))


def _changes(run: Callable[[], object]) -> list[int]:
    """Return the bytes of each allocation, negative for a release, in order."""
    from torch.profiler import ProfilerActivity, profile

    with (
        _without_garbage(),
        profile(
            activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profiler,
    ):
        result = run()
    events: Any = profiler.profiler.kineto_results.events()
    del result
    steps = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return [change for _, change in sorted(steps, key=lambda step: step[0])]


def peak_rss_bytes(run: Callable[[], object]) -> int | None:
    """Return the peak growth of the process's resident memory; None where it is not reported.

    This includes blocks that the allocator keeps for later use.
    """
    with _without_garbage():
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return None
        before = _status("VmRSS")
        run()
        after = _status("VmHWM")
    return None if before is None or after is None else max(0, after - before)


@contextmanager
def _without_garbage() -> Iterator[None]:
    """Collect garbage before the block and not within it, where it would make room for ``run``."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _status(name: str) -> int | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None
