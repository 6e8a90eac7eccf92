"""Every kernel compiles for NVIDIA's and AMD's devices, and fits into their registers."""

from __future__ import annotations

import pytest
import torch
import triton
from torch import Tensor

from benchmarks.ahead_of_time import (
    CASES,
    ISSUED,
    SHARED,
    TARGETS,
    Launch,
    compiled,
    cost,
    launches_of,
    resources,
)
from normkit.core.activations import Act
from normkit.kernels.triton import columns, finish, longrows, rows, runs, schedule, whole

pytestmark = pytest.mark.usefixtures("compiles_anew")


def _assert_fits(target: str, launches: list[Launch]) -> int:
    """Compile each of the launches that differ; return how many do."""
    for launch in launches:
        used = resources(compiled(launch, target), target)
        where = f"{launch.name} {launch.options}: {used}"
        threads = launch.options["num_warps"] * TARGETS[target].warp_size
        assert used.spills == 0, where
        assert used.registers <= (255 if target.startswith("sm") else 512), where
        # Of 32 bits, of all threads of a program together.
        assert used.registers * threads <= (65_536 if target.startswith("sm") else 131_072), where
        assert used.shared <= SHARED[target], where
    return len(launches)


@pytest.mark.parametrize(
    ("target", "case"),
    [
        ("sm_90", "rows"),
        pytest.param("gfx942", "positions", marks=pytest.mark.slow),
        pytest.param("sm_80", "group", marks=pytest.mark.slow),
        pytest.param("sm_100", "batch", marks=pytest.mark.slow),
    ],
)
def test_a_step_of_each_schedule(target: str, case: str) -> None:
    assert _assert_fits(target, launches_of(case, Act("silu"), torch.bfloat16)) >= 4


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.parametrize(
    ("act", "dtype"),
    [
        (None, torch.float32), (Act("relu"), torch.bfloat16), (Act("silu"), torch.float16),
        (Act("gelu"), torch.float32),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", TARGETS)
def test_everything(target: str, case: str, act: Act | None, dtype: torch.dtype) -> None:
    _assert_fits(target, launches_of(case, act, dtype))


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.parametrize("target", ISSUED)
@pytest.mark.parametrize(
    "case",
    ["batch", "batch, channels-last", "group", "group, channels-last", "many groups", "rows"],
)
def test_memory_is_the_limit(case: str, target: str) -> None:
    """In float32 a multiprocessor issues all instructions while memory moves the values."""
    for launch in launches_of(case, None, torch.float32):
        took = cost(launch, case, target)
        assert took is None or took.ratio < 1, f"{launch.name} {took}"


def test_the_cases_launch_every_kernel() -> None:
    launched = {
        launch.kernel for case in CASES for launch in launches_of(case, Act("silu"), torch.bfloat16)
    }
    for module in (rows, longrows, runs, whole, columns, finish, schedule):
        for name, kernel in vars(module).items():
            # Helpers are called within kernels, which store.
            stores = isinstance(kernel, triton.runtime.JITFunction) and "tl.store" in kernel.src
            if stores and kernel.__module__ == module.__name__:
                assert kernel in launched, f"{module.__name__}.{name}"


@pytest.mark.parametrize("case", CASES)
def test_enough_programs(case: str) -> None:
    """Passes over large tensors keep every multiprocessor busy, whatever the batch size is."""
    _, shape, _ = CASES[case]
    for launch in launches_of(case, Act("silu"), torch.bfloat16):
        passes = any(isinstance(a, Tensor) and a.shape == shape for a in launch.args)
        if passes and torch.Size(shape).numel() >= 2**20:
            assert launch.programs >= 128, launch.name
