"""The setting of the allocator: what it does in a process, and where it is left alone."""

from __future__ import annotations

import ctypes
import platform
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import normkit as nk
from normkit import allocator
from tests.forked import python

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")

PROGRAM = """
import resource, torch, normkit as nk
from normkit import allocator

def faults():
    count = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - count

before = faults()
took = nk.keep_freed_memory()
for _ in range(3):  # until blocks lie where they stay: with other processes, up to three passes
    faults()
print(took, before, faults())
"""


@glibc
def test_freed_blocks_are_kept() -> None:
    # In a process of its own: the setting lasts as long as the process.
    took, before, after = python("-c", PROGRAM).stdout.split()
    assert took == "True"
    assert int(before) > 64  # huge pages may make them few
    assert int(after) < int(before) / 8


class Library:
    """A C library whose functions have addresses, and note how they are called."""

    def __init__(self, posix_memalign: Any, accepts: bool = True) -> None:
        self.posix_memalign, self.accepts, self.calls = posix_memalign, accepts, []

    def mallopt(self, option: int, value: int) -> int:
        self.calls.append((option, value))
        return int(self.accepts or value < 2**30)


@pytest.fixture
def function() -> Any:
    return ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)


def libraries(monkeypatch: pytest.MonkeyPatch, process: Any, glibc: Any) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: glibc if name else process)


def test_older_glibc_takes_a_smaller_block(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    library = Library(function, accepts=False)
    libraries(monkeypatch, library, library)
    assert not nk.keep_freed_memory()  # this one refuses the threshold for trimming too
    assert library.calls == [(-3, 2**30), (-3, 2**25), (-1, 2**31 - 1)]
    library = Library(function)
    libraries(monkeypatch, library, library)
    assert nk.keep_freed_memory()
    assert library.calls == [(-3, 2**30), (-1, 2**31 - 1)]


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    library, preloaded = Library(function), Library(ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1))
    libraries(monkeypatch, preloaded, library)
    assert not nk.keep_freed_memory()
    assert library.calls == preloaded.calls == []
    without_mallopt = SimpleNamespace(posix_memalign=function)
    libraries(monkeypatch, without_mallopt, without_mallopt)
    assert not nk.keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str | None) -> Any:
        raise OSError(name)

    monkeypatch.setattr(allocator.ctypes, "CDLL", missing)
    assert not nk.keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("looked up"))
    assert not nk.keep_freed_memory()
