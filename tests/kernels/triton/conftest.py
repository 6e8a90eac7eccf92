"""Triton's interpreter, for tests of the kernels without a GPU.

Triton decides where a kernel is defined whether to interpret it, once for a process
(``TRITON_INTERPRET=1``). Tests that compile ahead of time want the same kernels compiled, so here a
fixture sends calls of compiled kernels to the interpreter for as long as a test runs. A file asks
for it by ``pytestmark = pytest.mark.usefixtures("interpreted")``.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from normkit.kernels import cpu
from normkit.kernels import triton as kernels

triton = pytest.importorskip("triton", reason="the kernels for GPUs are written in Triton")
RELEASE = tuple(map(int, triton.__version__.split(".")[:2]))


@pytest.fixture
def interpreted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpret every kernel that is launched on tensors of a CPU.

    Slow tests also look for overflow of integers, a third of the interpreter's time.
    """
    if RELEASE < (3, 7):
        pytest.skip("before Triton 3.7 its interpreter fails with NumPy 2.4")
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    # Kernels that are defined from here on would be interpreted for good.
    importlib.import_module("normkit.kernels.triton.schedule")

    def function(kernel: Any) -> Any:
        if not hasattr(kernel, "interpreted_form"):
            kernel.interpreted_form = interpreter.InterpretedFunction(kernel.fn)
        return kernel.interpreted_form

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        # Once for a launch. The interpreter would patch Triton's language in every call within a
        # kernel, which takes most of the time, and leave it patched.
        scope = interpreter._patch_lang(triton.language.sum.fn)
        try:
            function(self).run(*args, grid=grid, warmup=warmup, **kwargs)
        finally:
            scope.restore()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        rewritten: Callable[..., Any] = function(self).rewrite()
        return rewritten(*args, **kwargs)

    builder = interpreter.interpreter_builder
    checked = request.node.get_closest_marker("slow") is not None
    options = dataclasses.replace(builder.options, sanitize_overflow=checked)
    monkeypatch.setattr(builder, "options", options)
    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(JITFunction, "__call__", call)
    # Functions of constants return plain numbers to the interpreter.
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)


@pytest.fixture
def by_triton(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have layers and calls on a CPU computed by the kernels, interpreted."""
    monkeypatch.setattr(cpu, "fused", None)
    monkeypatch.setattr(kernels, "takes_cpu", True)


@pytest.fixture
def compiles_anew(tmp_path: Path) -> Iterator[None]:
    """Keep compiled code out of the user's cache, where it would not be compiled again."""
    if RELEASE < (3, 6):
        pytest.skip("before Triton 3.6 a launch is specialized in another way")
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        yield


class Memory:
    """Values that kernels load and store, by their addresses."""

    def __init__(self) -> None:
        self.loads: list[Any] = []
        self.stores: list[Any] = []

    def loaded(self, t: Tensor) -> int:
        """Count values loaded from ``t``."""
        return self._within(self.loads, t)

    def stored(self, t: Tensor) -> int:
        """Count values stored to ``t``."""
        return self._within(self.stores, t)

    def stored_twice(self) -> int:
        """Count stores to where something was stored before."""
        addresses = np.concatenate(self.stores)
        return len(addresses) - len(np.unique(addresses))

    @staticmethod
    def _within(lists: list[Any], t: Tensor) -> int:
        begin = t.data_ptr()
        end = begin + t.numel() * t.element_size()
        return sum(int(((a >= begin) & (a < end)).sum()) for a in lists)


@pytest.fixture
def memory(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Record what the interpreted kernels load and store."""
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    record, load, store = Memory(), Builder.create_masked_load, Builder.create_masked_store

    def recorded_load(self: Any, ptrs: Any, mask: Any, *others: Any) -> Any:
        record.loads.append(ptrs.data[mask.data])
        return load(self, ptrs, mask, *others)

    def recorded_store(self: Any, ptrs: Any, value: Any, mask: Any, *others: Any) -> Any:
        record.stores.append(ptrs.data[mask.data])
        return store(self, ptrs, value, mask, *others)

    monkeypatch.setattr(Builder, "create_masked_load", recorded_load)
    monkeypatch.setattr(Builder, "create_masked_store", recorded_store)
    return record
