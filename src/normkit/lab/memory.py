"""Keep the memory that a training frees and allocates again at each step."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST = 2**31 - 1
_LARGEST_KEPT = (2**30, 2**25)  # older glibcs refuse the first


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, instead of returning it to the system.

    glibc gives large blocks back at once, and the system hands them out again zeroed, page by page.
    A training step takes and frees the same blocks each time: kept, a step of BN-LeNet (batch 256)
    took 0.72 and one of Caffe's quick network (batch 100) 0.72 of the time, at the median of 30 and
    75 steps, in turn. No number changes.

    Returns:
        Whether the allocator took it; False where it is another one than glibc's.

    >>> keep_freed_memory() in (True, False)
    True
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    accepted = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT)
    return bool(accepted and mallopt(_M_TRIM_THRESHOLD, _MOST))
