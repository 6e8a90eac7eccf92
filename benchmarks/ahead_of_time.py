"""Kernels for GPUs as they are compiled: registers, and instructions beside what memory allows.

    python -m benchmarks.ahead_of_time                        # five minutes; no GPU
    python -m benchmarks.ahead_of_time --target sm_80 --cases rows "short rows"

A launch is recorded on tensors of PyTorch's "meta" device, which have a shape and no memory. From
its arguments Triton derives what it would compile: types, constants, and which numbers are
divisible by 16.

While memory moves the bytes of a value, a multiprocessor can issue so many instructions for it as
:data:`ISSUED` says, by the figures of the card's data sheet. A kernel that has more of them waits
for itself and not for memory. Counted are those of the machine code, the longest loop as often as
it is run, for all programs of a launch, and divided by the values of the input. Some take longer
than others, so a ratio above 1 proves that memory is not the limit, and one below 1 does not prove
that it is.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
from triton.compiler.compiler import ASTSource, make_backend  # type: ignore[import-untyped]
from triton.runtime.jit import (  # type: ignore[import-untyped]
    JITFunction,
    create_function_from_signature,
)

from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.pools import PER_CHANNEL, PER_POSITION, Pool
from normkit.kernels.triton import schedule
from normkit.kernels.triton.problem import of_spec

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
"""Bytes of shared memory that a program may have."""

ISSUED = {"sm_80": 108 * 128 * 1.41e9 / 2.04e12, "sm_90": 132 * 128 * 1.98e9 / 4.8e12}
"""Instructions of a thread for each byte that memory moves, on an A100 of 80 GB and on an H200.

Multiprocessors × lanes × clock / bandwidth.
"""

GROUPS, LAYER, GHOST = Pool("group", 32), Pool("group", 1), Pool("ghost", 4)

CASES: dict[str, tuple[Pool, tuple[int, ...], bool]] = {
    "batch": (PER_CHANNEL, (32, 256, 56, 56), False),
    "batch, channels-last": (PER_CHANNEL, (32, 256, 56, 56), True),
    "batch, little space": (PER_CHANNEL, (64, 2048, 1, 1), False),
    "ghost batch": (GHOST, (32, 64, 28, 28), False),
    "group": (GROUPS, (1, 512, 128, 128), False),
    "many groups": (GROUPS, (64, 320, 32, 32), False),
    "smaller groups": (GROUPS, (64, 320, 16, 16), False),
    "channels of a sample": (Pool("group", 256), (32, 256, 56, 56), False),
    "group, channels-last": (GROUPS, (1, 512, 128, 128), True),
    "rows": (LAYER, (8192, 4096), False),
    "short rows": (LAYER, (65536, 96), False),
    "rows, half aligned": (LAYER, (16384, 1000), False),
    "long rows": (LAYER, (4096, 50_000), False),
    "few long rows": (LAYER, (2, 1_000_000), False),
    "longest row of a tile": (LAYER, (8192, 8192), False),
    "longest row, not aligned": (LAYER, (8192, 8191), False),
    "rows, not aligned": (LAYER, (8192, 4095), False),
    "positions": (PER_POSITION, (32, 192, 28, 28), False),
    "positions, channels-last": (PER_POSITION, (32, 192, 28, 28), True),
    "positions, many channels": (PER_POSITION, (32, 3000, 28, 28), False),
    "largest tile of positions": (PER_POSITION, (32, 96, 56, 56), False),
    "odd sizes": (PER_POSITION, (3, 35, 7, 5), False),
}  # fmt: skip
"""Pool, shape and memory format, for each of the schedules; sizes as in common networks."""

MEASURED = [(Act("relu"), torch.bfloat16), (Act("silu"), torch.float16), (None, torch.float32)]


class Launch(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

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
        launches.append(Launch(self, grid, args, options))

    with mock.patch.object(JITFunction, "run", run):
        yield launches


def meta(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    """Return a tensor without memory; channels-last if ``last``."""
    t = torch.empty(shape, dtype=dtype, device="meta")
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.contiguous(memory_format=formats[t.dim()]) if last else t


def launches_of(case: str, act: Act | None, dtype: torch.dtype) -> list[Launch]:
    """Record a step with a residual, a step without, and one with fixed moments."""
    pool, shape, last = CASES[case]
    x = meta(*shape, dtype=dtype, last=last)
    weight, bias, mean, var = meta(4, shape[1]).unbind()
    problem, from_output = of_spec(Spec(pool, 1e-5, act)), act == Act("relu")
    update = (mean, var, 0.1) if pool.over == "batch" else None
    with recorded() as launches:
        for residual in (x, None):
            y, stats = schedule.forward(x, weight, bias, residual, problem, None, update)
            other = None if act is None or residual is None else y if from_output else residual
            needs = (True, True, True, other is not None)
            schedule.backward(x, x, weight, bias, other, stats, other is y, needs, problem)
        # With constants, as in evaluation, or when an output is computed again.
        schedule.fixed_stats(mean, var, 1e-5)
        schedule.forward(x, weight, bias, None, problem, stats)
        schedule.backward(x, x, weight, bias, None, stats, False, (True, True, True, False),
                          problem, own_stats=False)  # fmt: skip
    return unlike(launches)


def unlike(launches: list[Launch]) -> list[Launch]:
    """Return the launches for which Triton compiles different code."""
    first: dict[Any, Launch] = {}
    for launch in launches:
        kinds = (a.dtype if isinstance(a, Tensor) else a for a in launch.args)
        first.setdefault((launch.kernel, *kinds, *launch.options.items()), launch)
    return list(first.values())


def compiled(launch: Launch, target: str) -> Any:
    """Compile what Triton would for ``launch`` on ``target``."""
    backend, kernel = make_backend(TARGETS[target]), launch.kernel
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = binder(*launch.args, **launch.options)
    options, signature, constants, attributes = kernel._pack_args(
        backend, dict(launch.options), bound, specialization, None
    )
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGETS[target], options=options.__dict__)


def resources(kernel: Any, target: str) -> Resources:
    """Return registers of a thread, spilled bytes or registers, and bytes of shared memory."""
    if target.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        number = {k: int(v) for k, v in re.findall(r"\.(\w+_count|\w+_size):\s+(\d+)", text)}
        spills = number["sgpr_spill_count"] + number["vgpr_spill_count"]
        return Resources(number["vgpr_count"], spills, kernel.metadata.shared)
    text = _of_binary(kernel, "--dump-resource-usage")
    number = {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", text)}
    return Resources(number["REG"], number["STACK"] + number["LOCAL"], kernel.metadata.shared)


def instructions(kernel: Any) -> tuple[int, int]:
    """Return the numbers of all instructions, and of those of the longest loop."""
    code = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", _of_binary(kernel, "--dump-sass"))
    at = {int(address, 16): text for address, text in code if not text.startswith("NOP")}
    loops = [0]
    for here, text in at.items():
        jump = re.search(r"BRA.* (0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < here:
            loops.append(sum(int(jump[1], 16) <= a <= here for a in at))
    return len(at), max(loops)


def turns(launch: Launch) -> int:
    """Return how often a program of ``launch`` runs its loop, where it has one."""
    given, name = launch.arguments(), launch.kernel.__name__
    if "tiles" in given:
        return -(-given["tiles"] // given["parts"])
    walk = given.get("walk", 1)
    if "VALUES" in given:  # counted in values, not in tiles
        walk = -(-min(walk, given["length"]) // given["VALUES"])
    # The first tile is read before the loop.
    return walk - 1 if name == "_moments" else walk


def _of_binary(kernel: Any, option: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, option, str(cubin)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Cost(NamedTuple):
    """What one kernel takes.

    Args:
        moved: tensors of the input's size that it reads or writes.
        tile: its size in both directions.
        threads: of a multiprocessor, as many as registers allow at once.
        instructions: for each value of the input.
        ratio: of these to what a multiprocessor issues while memory moves the value.
    """

    moved: list[str]
    tile: list[int]
    used: Resources
    threads: int
    instructions: float
    ratio: float


def cost(launch: Launch, case: str, target: str) -> Cost | None:
    """Compile one launch of ``case``; return None if it does not pass over the data."""
    size, options = math.prod(CASES[case][1]), launch.options
    data = {
        name: a.element_size()
        for name, a in launch.arguments().items()
        if isinstance(a, Tensor) and a.numel() == size
    }
    if not data:
        return None
    sides = ("POOLS", "VALUES", "BLOCK_R", "BLOCK_C", "ROWS", "COLS")
    tile, threads = [options[k] for k in sides if k in options], 32 * options["num_warps"]
    kernel = compiled(launch, target)
    used, (every, loop) = resources(kernel, target), instructions(kernel)
    issued = every - loop + loop * turns(launch)
    each = issued * threads * launch.programs / size
    # Registers are given out eight at a time for each thread.
    of_registers = 65_536 // (-(-used.registers // 8) * 8 * threads)
    programs = min(of_registers, 2048 // threads, 32, SHARED[target] // max(used.shared, 1))
    ratio = each / (ISSUED[target] * sum(data.values()))
    return Cost(list(data), tile, used, programs * threads, each, ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", choices=ISSUED, default="sm_90")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    chosen = parser.parse_args()
    print(f"  {'kernel':20}     tile warps registers spills threads instructions ratio")
    for case in chosen.cases:
        for act, dtype in MEASURED:
            print(f"{case}, {'no activation' if act is None else act.name}, {str(dtype)[6:]}")
            for launch in launches_of(case, act, dtype):
                took = cost(launch, case, chosen.target)
                if took is not None:
                    print(
                        f"  {launch.name:20} {'×'.join(map(str, took.tile)):>8} "
                        f"{launch.options['num_warps']:>5} {took.used.registers:>9} "
                        f"{took.used.spills:>6} {took.threads:>7} {took.instructions:>12.1f} "
                        f"{took.ratio:>5.2f}  {', '.join(took.moved)}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
