"""Division of runs and columns into tiles and programs, and the bytes that these move."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.ahead_of_time import Launch, compiled, meta, recorded
from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.pools import Pool, as_ncs
from normkit.kernels.triton import geometry, schedule, whole
from normkit.kernels.triton.geometry import Tiles, plan_columns, plan_runs
from normkit.kernels.triton.problem import FILL, of_spec

BATCH, GHOST, GROUPS = Pool("batch"), Pool("ghost", 4), Pool("group", 32)
# Networks' shapes, and sizes that no power of two divides.
SHAPES = [
    (32, 64, 112, 112), (32, 256, 56, 56), (32, 1024, 14, 14), (32, 2048, 7, 7), (1, 64, 256, 256),
    (1, 512, 64, 64), (1, 128, 1024, 1024), (8, 320, 32, 32), (4, 96, 127, 131), (64, 1280, 1, 1),
    (4096, 256, 3, 3),
]  # fmt: skip
# U-Nets and decoders of diffusion models, at a batch size of 1.
DECODERS = [(1, 512, 64, 64), (1, 512, 128, 128), (1, 256, 256, 256), (1, 128, 512, 512)]


def _covers(tiles: Tiles, across: int, along: int, block: int, step: int) -> None:
    for size in (tiles.rows, tiles.cols, tiles.warps):
        assert size & (size - 1) == 0
    assert tiles.blocks * block >= across > (tiles.blocks - 1) * block
    reach = step * tiles.walk
    assert tiles.splits * reach >= along > (tiles.splits - 1) * reach
    assert tiles.rows * tiles.cols <= geometry.TILE


@pytest.mark.parametrize("pool", [BATCH, GHOST, GROUPS, Pool("group", 1)], ids=str)
@pytest.mark.parametrize(
    "shape", [*SHAPES, (4, 32, 1, 1), (4, 32, 1, 3), (16, 32, 17, 61)], ids=str
)
def test_tiles_cover_the_input_and_little_more(pool: Pool, shape: tuple[int, ...]) -> None:
    if pool is GHOST and shape[0] % pool.groups:
        pool = Pool("ghost", 1)
    problem, c = of_spec(Spec(pool, 1e-5)), shape[1]
    x = meta(*shape)
    plan, s = plan_runs(x, problem), as_ncs(x)[2]
    assert plan.rows * plan.cols == x.numel()
    for matrix, tiles, partials in (plan.moments, plan.sums):
        assert matrix.units * matrix.rows == plan.rows
        _covers(tiles, matrix.rows, plan.cols, tiles.rows, tiles.cols)
        assert partials.size == pool.count(shape[0], c, s)
        assert tiles.walk <= geometry.WALK
        if s > geometry.LINE:  # lanes without a value
            assert tiles.splits * tiles.walk * tiles.cols < 1.4 * s + tiles.walk * tiles.cols
    _covers(plan.maps, plan.rows, plan.cols, plan.maps.rows, plan.maps.cols)
    assert plan.maps.walk == 1
    for last in (False, True):
        columns = plan_columns(meta(*shape, last=last), problem)
        assert columns.parts * columns.rows * columns.width == x.numel() or pool.over == "group"
        if last or pool.over != "group":
            tiles, partials = columns.tiles, columns.partials
            _covers(tiles, columns.width, columns.rows, tiles.cols, tiles.rows)
            assert partials.pools * partials.size == x.numel()
            assert partials.pools == torch.Size(pool.stats(shape[0], c, s)).numel()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", DECODERS, ids=str)
def test_groups_of_one_sample_fill_a_gpu(shape: tuple[int, ...], last: bool) -> None:
    """PyTorch's kernel has 32 blocks here, one for each group."""
    for launch in _step(GROUPS, shape, torch.bfloat16, last):
        if any(isinstance(a, torch.Tensor) and a.shape == shape for a in launch.args):
            assert launch.programs >= FILL / 2, launch.name


def _step(pool: Pool, shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> list[Launch]:
    x, weight = meta(*shape, dtype=dtype, last=last), meta(shape[1])
    problem = of_spec(Spec(pool, 1e-5, Act("silu")))
    with recorded() as launches:
        _, stats = schedule.forward(x, weight, weight, None, problem)
        schedule.backward(
            x, x, weight, weight, None, stats, False, (True, True, True, False), problem
        )
    return launches


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pool", [BATCH, GROUPS], ids=str)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] * s[2] > 64], ids=str)
def test_bytes_are_those_of_the_passes(shape: tuple[int, ...], pool: Pool, last: bool) -> None:
    """A kernel moves each of its tensors once (test_each_value_is_moved_as_often_as_stated).

    The limit is three passes forward and five backward, or two and three for groups that are read
    once; what partial results add to it is little, except for groups of few positions.
    """
    x, problem = meta(*shape, dtype=torch.bfloat16, last=last), of_spec(Spec(pool, 1e-5))
    forward = schedule.kernels_for(x, problem)
    backward = schedule.kernels_for(x, problem, backward=True)
    passes = (2 if forward is whole else 3) + (3 if backward is whole else 5)
    passes *= x.numel() * x.element_size()
    moved = sum(
        a.numel() * a.element_size()
        for launch in _step(pool, shape, x.dtype, last)
        for a in launch.args
        if isinstance(a, torch.Tensor)
    )
    few = shape[2] * shape[3] < geometry.SHORT and pool is GROUPS
    assert passes < moved <= (1.5 if few else 1.12) * passes


@pytest.mark.parametrize("size", [1, 3, 31, 49, 64, 65, 100, 196, 784, 3136, 12544, 2**20])
def test_few_lanes_of_a_row_are_empty(size: int) -> None:
    block = geometry._fit(size, geometry.TILE)
    padded = geometry.blocks(size, block) * block
    assert block & (block - 1) == 0 and block <= geometry.TILE
    assert padded <= (1.25 if size >= 4 * geometry.LINE else 2) * size


@pytest.mark.parametrize("last", [False, True])
def test_few_kernels_are_compiled_anew_for_another_shape(last: bool) -> None:
    """Sizes are no constants, and their divisibility matters only along the axis of lanes."""
    variants = set()
    for n, c, side in ((32, 64, 64), (16, 128, 64), (7, 192, 64), (1, 256, 64)):
        for launch in _step(BATCH, (n, c, side, side), torch.bfloat16, last):
            constants = [v for k, v in launch.options.items() if k.isupper()]
            variants.add((launch.name, *constants))
    assert len(variants) <= 14


@pytest.mark.slow
@pytest.mark.parametrize("pool", [BATCH, GROUPS], ids=str)
@pytest.mark.parametrize(
    ("shape", "last", "wide"),
    [((4, 64, 56, 56), False, 4), ((4, 64, 14, 14), False, 2), ((4, 96, 14, 14), True, 4)],
    ids=str,
)
def test_accesses_to_memory_are_wide(
    shape: tuple[int, ...], last: bool, wide: int, pool: Pool, compiles_anew: None
) -> None:
    """Of 16 bytes a thread; of 8 where rows of 16-bit values begin at multiples of 8 bytes.

    And no sum depends on which program is first.
    """
    for launch in _step(pool, shape, torch.bfloat16, last):
        if not launch.name.endswith("_gradients") and not launch.name.endswith("_moments"):
            continue
        ptx = compiled(launch, "sm_90").asm["ptx"]
        assert not re.search(r"\b(atom|red)\.", ptx)
        if launch.name.startswith("finish"):
            continue
        assert f"ld.global.v{wide}.b32" in ptx, launch.name
        if launch.name.endswith("_gradients"):
            assert f"st.global.v{wide}.b32" in ptx
