"""Triton's interpreter, for tests of the kernels without a GPU.

Triton decides where a kernel is defined whether to interpret it, once for a process
(``TRITON_INTERPRET=1``). Tests that compile ahead of time want the same kernels compiled, so here a
fixture sends calls of compiled kernels to the interpreter for as long as a test runs. A file asks
for it by ``pytestmark = pytest.mark.usefixtures("interpreted")``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="the kernels for GPUs are written in Triton")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpret every kernel that is launched on tensors of a CPU."""
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

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

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(JITFunction, "__call__", call)
    # Functions of constants return plain numbers to the interpreter.
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
