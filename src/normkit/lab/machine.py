"""Host, hardware and versions, noted beside each run and printed in the report."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import socket
from pathlib import Path

__all__ = ["cores", "host", "is_alive", "summary", "versions"]


def cores() -> int:
    """Return the number of processor cores that this process may use (a container may limit it)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that decide the numbers: Python, torch, numpy, normkit.

    >>> sorted(versions())
    ['normkit', 'numpy', 'python', 'torch']
    """
    by_name = {"python": platform.python_version()}
    for name in ("normkit", "numpy", "torch"):
        try:
            by_name[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            by_name[name] = "not installed as a package"
    return by_name


def summary(place: str = "") -> str:
    """Describe the machine in one line: system, processor, cores, and the place if not the CPU.

    >>> summary("2 processes together") == summary() + "; 2 processes together"
    True
    """
    return f"{_machine()}; {place}" if place else _machine()


@functools.cache
def _machine() -> str:
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return f"{platform.system()} {platform.machine()}, {processor}, {cores()} cores"


@functools.cache
def host() -> str:
    """Return a name for the space in which a process number identifies a process.

    The host's name alone is not enough: after a restart, or in another container with the same
    name, the same number is another process. Where Linux tells them, the boot and the process
    namespace are part of the name.
    """
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        name += f"/{boot[:8]}/{Path('/proc/self/ns/pid').readlink()}"
    return name


def is_alive(pid: int) -> bool | None:
    """Return True if a process of this host is alive; None where the system cannot tell.

    >>> is_alive(os.getpid()) in (True, None)
    True
    """
    if os.name != "posix":  # elsewhere, signal 0 would end the process
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
