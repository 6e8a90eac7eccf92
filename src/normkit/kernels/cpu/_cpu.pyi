"""The compiled extension: torch_module.cpp over the engine, libnormkit_cpu."""

from typing import TypedDict

torch_version: str
"""The torch it was built for, without a local part such as ``+cpu``."""

builds: tuple[str, ...]
"""The compiled builds that this machine can run, best first."""

class Table(TypedDict):
    types: tuple[str, ...]
    pools: tuple[str, ...]
    acts: tuple[str, ...]
    stats: tuple[str, ...]
    accumulator: dict[str, str]
    epsilon: dict[str, float]
    signature: dict[str, int]

def table() -> Table:
    """Return the names, numbers and rules that Python repeats; tests/kernels/test_table.py."""

def observes(x: object) -> bool:
    """Return whether PyTorch's operations must compute ``x``, not the kernels."""

def recomputing() -> bool:
    """Return whether a backward pass is running in this thread."""

def use(name: str) -> None:
    """Compute with the named build from now on."""

def assume_cache(bytes: int) -> int:
    """Compute as if the last cache had so many bytes; return the size assumed before. For tests."""

def in_use() -> str: ...
def refuses(*args: object) -> str | None:
    """Return why :func:`normalize` returns None for these arguments with ``x`` made dense."""

def normalize(*args: object) -> object: ...
def layer(*args: object) -> object: ...
def moments(*args: object) -> object: ...
def kept(y: object) -> tuple[object, ...] | None:
    """Return what the node of ``y`` keeps beside tensors; None where it is of no such node."""

def again(*args: object) -> object:
    """Compute an output again from its inputs and what :func:`kept` returned, without a graph."""
