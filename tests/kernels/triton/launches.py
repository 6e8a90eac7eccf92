"""Launches of the kernels, recorded without a GPU and compiled ahead of time as on one.

A launch is recorded on tensors of PyTorch's "meta" device, which have a shape and no memory. From
its arguments Triton derives what it would compile: types, constants, and which numbers are
divisible by 16.
"""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes of shared memory that a program may have.
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}


class Launch(NamedTuple):
    kernel: Any
    programs: int
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.kernel.__module__.rpartition('.')[2]}.{self.kernel.__name__}"

    def arguments(self) -> dict[str, Any]:
        """Return all arguments by their names, without the options of a launch."""
        names = self.kernel.arg_names
        return dict(zip(names, self.args, strict=False)) | {
            k: v for k, v in self.options.items() if k in names
        }


class Resources(NamedTuple):
    """Registers of a thread, bytes of shared memory, and what registers have no room for.

    ``spills`` are bytes, or registers of gfx; ``in_loops`` how many instructions move them there.
    """

    registers: int
    spills: int
    shared: int
    in_loops: int


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Record launches in place of doing them."""
    launches: list[Launch] = []

    def run(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        launches.append(Launch(self, math.prod(grid), args, options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        yield launches


def source(launch: Launch, target: GPUTarget) -> tuple[ASTSource, dict[str, Any]]:
    """Return what Triton compiles for ``launch``, and its options."""
    backend = make_backend(target)
    kernel = launch.kernel
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = binder(*launch.args, **launch.options)
    options, signature, constants, attributes = kernel._pack_args(
        backend, dict(launch.options), bound, specialization, None
    )
    return ASTSource(kernel, signature, constants, attributes), options.__dict__


def compiled(launch: Launch, target: str) -> Any:
    what, options = source(launch, TARGETS[target])
    return triton.compile(what, target=TARGETS[target], options=options)


def resources(kernel: Any, target: str) -> Resources:
    """Return what the machine code of a compiled kernel asks for."""
    shared = kernel.metadata.shared
    if target.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        number = {k: int(v) for k, v in re.findall(r"\.(\w+_count|\w+_size):\s+(\d+)", text)}
        spills = number["sgpr_spill_count"] + number["vgpr_spill_count"]
        return Resources(number["vgpr_count"], spills, shared, spills)
    tools = triton.knobs.nvidia
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        text = _output(tools.cuobjdump.path, "--dump-resource-usage", str(cubin))
        number = {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", text)}
        spills = number["STACK"] + number["LOCAL"]
        code = _output(tools.nvdisasm.path, "-c", str(cubin)) if spills else ""
    return Resources(number["REG"], spills, shared, _in_loops(code.splitlines()))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _in_loops(code: list[str]) -> int:
    """Count loads from and stores to local memory between a label and a branch back to it.

    >>> _in_loops(["STL [R1], R0 ;", ".L_1:", "FADD R2, R2, R3 ;", "@P0 BRA `(.L_1) ;", "LDL R0 ;"])
    0
    >>> _in_loops([".L_1:", "LDL R2, [R1] ;", "@P0 BRA `(.L_1) ;"])
    1
    """
    labels = {line.strip()[:-1]: i for i, line in enumerate(code) if line.strip().endswith(":")}
    inside: set[int] = set()
    for i, line in enumerate(code):
        target = re.search(r"BRA.*\((\S+)\)", line)
        if target:
            inside.update(range(labels[target[1]], i))
    return sum(1 for i in inside if re.search(r"\b(LDL|STL)\b", code[i]))


def meta(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    """Return a tensor without memory; channels-last if ``last``."""
    t = torch.empty(shape, dtype=dtype, device="meta")
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.contiguous(memory_format=formats[t.dim()]) if last else t
