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
    registers: int
    spills: int
    shared: int


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
    """Return registers of a thread, spilled bytes or registers, and bytes of shared memory."""
    if target.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        number = {k: int(v) for k, v in re.findall(r"\.(\w+_count|\w+_size):\s+(\d+)", text)}
        spills = number["sgpr_spill_count"] + number["vgpr_spill_count"]
        return Resources(number["vgpr_count"], spills, kernel.metadata.shared)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", str(cubin)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    number = {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", text)}
    return Resources(number["REG"], number["STACK"] + number["LOCAL"], kernel.metadata.shared)


def meta(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    """Return a tensor without memory; channels-last if ``last``."""
    t = torch.empty(shape, dtype=dtype, device="meta")
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.contiguous(memory_format=formats[t.dim()]) if last else t
