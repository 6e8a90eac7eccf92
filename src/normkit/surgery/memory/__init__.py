"""Keep out of memory what can be computed again, :func:`save_memory`."""

from normkit.surgery.memory.save import save_memory

__all__ = ["save_memory"]
