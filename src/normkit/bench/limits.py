"""Limits of the machine: cache sizes, and the least cost of an operation in copies."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

__all__ = ["EVAL_COPIES", "cache_bytes", "kernels", "machine", "training_copies"]

EVAL_COPIES = 1.0
"""Evaluation reads the input and writes the output, as a copy does."""


def training_copies(residual: bool) -> float:
    """Return the least cost of forward and backward in copies of one tensor.

    Forward reads x and writes y; backward reads x and dy and writes dx: five passes, two and a
    half copies. A residual is read in forward and its gradient written in backward. The limit
    does not include the second read of x in forward, which tensors larger than the caches need
    because batch moments must be complete before the first output is written.

    >>> training_copies(False), training_copies(True)
    (2.5, 3.5)
    """
    return 3.5 if residual else 2.5


def cache_bytes(level: int) -> int | None:
    """Return the size of the cache of this level; None where the system does not report it."""
    with suppress(ValueError, OSError, AttributeError):
        size = os.sysconf(f"SC_LEVEL{level}_CACHE_SIZE")
        if size > 0:
            return size
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    for index in sorted(folder.glob("index*")):
        with suppress(OSError, ValueError):
            kind = (index / "type").read_text().strip()
            if kind != "Instruction" and int((index / "level").read_text()) == level:
                return parse_size((index / "size").read_text().strip())
    return None


def parse_size(text: str) -> int:
    """Parse a size as Linux writes it.

    >>> parse_size("1024K"), parse_size("2M"), parse_size("512")
    (1048576, 2097152, 512)
    """
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * unit


def kernels() -> str:
    """Describe the kernels that the layers use on this machine."""
    # Imported here because it loads compiled code.
    from normkit.kernels.cpu import describe

    return describe()


def machine(threads: int | None = None) -> dict[str, object]:
    """Return what figures depend on: processor, caches, versions, threads; not the host's name."""
    import torch

    import normkit

    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    huge = ""
    with suppress(OSError):
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
        huge = text.partition("[")[2].partition("]")[0]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": threads or torch.get_num_threads(),
        "l2_bytes": cache_bytes(2),
        "huge_pages": huge,
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "normkit": normkit.__version__,
        "kernels": kernels(),
    }
