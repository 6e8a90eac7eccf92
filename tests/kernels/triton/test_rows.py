"""Rows and positions against the oracle, in the interpreter: any layout, type and division."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.ahead_of_time import meta, recorded
from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.pools import PER_POSITION, Pool
from normkit.kernels.triton import lines, longrows, rows, schedule
from normkit.kernels.triton.lines import Limits, Lines, plan, plan_long
from normkit.kernels.triton.problem import exceeds, of_spec
from tests.few import few
from tests.kernels.triton.agreement import ACTS, assert_as_by_oracle, draw_tensors
from tests.kernels.triton.conftest import Memory

pytestmark = pytest.mark.usefixtures("by_triton")

LAST = torch.channels_last
# Division of toy shapes into several tiles and programs, and pools longer than a tile.
SMALL: dict[str, Any] = {
    "FORWARD": lines.FORWARD._replace(short=32), "BACKWARD": lines.BACKWARD._replace(short=32),
    "LEAST": 2, "FILL": 4, "LINE": 8,
}  # fmt: skip
NONE = Limits(0, 0, 8, 8, False)
LONG: dict[str, Any] = {**SMALL, "FORWARD": NONE, "BACKWARD": NONE, "LONG": 16}
DIVISIONS: dict[str, dict[str, Any]] = {
    "usual": {}, "small": SMALL, "long": LONG, "split": {**LONG, "FILL": 400},
}  # fmt: skip

# Nothing to derive, a derivative from the output, and one from what goes in.
MOVED = few([Act("relu"), None, Act("silu")], lambda act: act is not None and act.name == "relu")


def _divide(patch: pytest.MonkeyPatch, division: str) -> None:
    for name, value in DIVISIONS[division].items():
        patch.setattr(lines, name, value)
        if hasattr(rows, name):
            patch.setattr(rows, name, value)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Spec, list[Tensor | None], Tensor]:
    n, c = draw(st.integers(1, 3)), draw(st.integers(2, 40))
    space = draw(st.sampled_from([(), (1, 1), (3,), (2, 3), (3, 5), (2, 3, 1)]))
    divisors = [g for g in range(1, c) if c % g == 0]
    pool = PER_POSITION
    if len(space) != 1 and space in ((), (1, 1)) and draw(st.booleans()):
        pool = Pool("group", draw(st.sampled_from(divisors)))
    act, centred = draw(st.sampled_from(ACTS)), draw(st.booleans())
    return Spec(pool, 1e-5, act, centred), *draw_tensors(draw, (n, c, *space))


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(problem=problems(), division=st.sampled_from(list(DIVISIONS)))
def test_any_problem(problem: tuple[Spec, list[Tensor | None], Tensor], division: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _divide(patch, division)
        assert_as_by_oracle(*problem)


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("last", few([False, True], lambda last: not last))
def test_far_from_zero(division: str, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean of 10⁴ and a deviation of 0.1: what rounding takes from the mean is half a percent."""
    _divide(monkeypatch, division)
    x = torch.randn(2, 30, 3, 3) * 0.1 + 1e4
    x = x.contiguous(memory_format=LAST) if last else x
    spec = Spec(PER_POSITION, 1e-5)
    assert_as_by_oracle(spec, [x, torch.randn(30), torch.randn(30), None], torch.randn(2, 30, 3, 3))
    stats = schedule.moments(x, of_spec(spec))
    wide = x.double()
    mean = wide.mean(1).flatten()
    assert float((stats[0].double() + stats[1].double() - mean).abs().max()) < 1e-6
    var = wide.var(1, correction=0).flatten()
    torch.testing.assert_close(stats[3].double(), var, rtol=1e-6, atol=0)


@pytest.mark.slow  # with a look for overflow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(), division=st.sampled_from(list(DIVISIONS)))
def test_more_problems(problem: tuple[Spec, list[Tensor | None], Tensor], division: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _divide(patch, division)
        assert_as_by_oracle(*problem)


@pytest.mark.parametrize("value", few([1 / 3, 1e6 + 0.3, 3e11], lambda value: value > 1e9))
@pytest.mark.parametrize("division", DIVISIONS)
def test_constant_values_have_no_variance(
    division: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    _divide(monkeypatch, division)
    x, problem = torch.full((2, 37, 3, 3), value), of_spec(Spec(PER_POSITION, 1e-5))
    y, stats = schedule.forward(x, None, None, None, problem)
    assert float(stats[3].max()) <= (value * 2**-23) ** 2 * 2**-20
    assert float(y.abs().max()) < 1e-5


@pytest.mark.parametrize("step", [1, 6])
def test_long_pools_that_begin_otherwise(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their moments are taken about the mean of a first tile, again after 16 of them."""
    monkeypatch.setattr(lines, "FILL", 1)  # as where pools are many
    x = torch.randn(1, 60_000, step, generator=torch.Generator().manual_seed(0))
    x[:, :64] += 1e3
    stats = schedule.moments(x, of_spec(Spec(PER_POSITION, 1e-5)))
    truth = x.double().var(1, correction=0).flatten()
    torch.testing.assert_close(stats[3].double(), truth, rtol=2e-6, atol=0)


@pytest.mark.parametrize("shape", [(1, 2**22 - 1, 4, 4), (2, 2**26 - 1, 1, 1)])
def test_launches_within_the_limits_have_a_grid(shape: tuple[int, ...]) -> None:
    """Of the second axis a GPU takes 65,535 programs."""
    for dtype in (torch.float32, torch.bfloat16):
        x, problem = meta(*shape, dtype=dtype), of_spec(Spec(PER_POSITION, 1e-5))
        assert not exceeds(problem.pool, shape[0], shape[1], math.prod(shape[2:]))
        with recorded() as launches:
            _, stats = schedule.forward(x, None, None, None, problem)
            schedule.backward(x, x, None, None, None, stats, False, (True,) * 4, problem)
        assert len(launches) >= 4
        assert all(max(launch.grid[1:], default=1) <= 65_535 for launch in launches)


@pytest.mark.parametrize("division", DIVISIONS)
def test_tiny_values(division: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deviation of 10⁻¹⁸: its reciprocal cubed is beyond float32."""
    _divide(monkeypatch, division)
    x, w, b, dy = torch.randn(2, 30, 3, 3) * 1e-18, *torch.randn(2, 30), torch.randn(2, 30, 3, 3)
    assert_as_by_oracle(Spec(PER_POSITION, 1e-45), [x, w, b, None], dy)


@pytest.mark.parametrize("act", MOVED, ids=str)
@pytest.mark.parametrize("last", few([False, True], lambda last: last))
@pytest.mark.parametrize("division", ["small", "long", "split"])
def test_each_value_is_moved_as_often_as_stated(
    division: str, last: bool, act: Act | None, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one tile once; in a loop once for the sums and once for the result."""
    _divide(monkeypatch, division)
    passes = 1 if division == "small" else 2
    problem = of_spec(Spec(PER_POSITION, 1e-5, act))
    x, residual, dy = torch.randn(3, 2, 23, 5, 3).unbind()
    if last:
        x, residual, dy = (t.contiguous(memory_format=LAST) for t in (x, residual, dy))
    weight, bias = torch.randn(2, 23).unbind()
    y, stats = schedule.forward(x, weight, bias, residual, problem)
    assert memory.loaded(x) == passes * x.numel()
    assert memory.loaded(residual) == memory.stored(y) == x.numel()
    assert memory.stored(stats) == stats.numel()
    assert memory.stored_twice() == 0
    memory.loads.clear()
    memory.stores.clear()
    needs = (True, True, True, act is not None)
    from_output = act == Act("relu")
    other = y if from_output else residual if act else None
    grads = schedule.backward(dy, x, weight, bias, other, stats, from_output, needs, problem)
    assert memory.loaded(x) == memory.loaded(dy) == passes * x.numel()
    if other is not None:
        assert memory.loaded(other) == passes * x.numel()
    for gradient in (grads[0], grads[3]):
        if gradient is not None:
            assert memory.stored(gradient) == x.numel()
    assert memory.stored_twice() == 0


LINES = [
    Lines(1, 8192, 1, 4096, 1, 1, 4096), Lines(1, 8, 1, 768, 1, 1, 768),
    Lines(1, 1, 1, 1, 1, 1, 1), Lines(1, 100_003, 1, 7, 1, 1, 7), Lines(1, 64, 8, 96, 1, 8, 768),
    Lines(1, 32, 1, 16384, 1, 1, 16384), Lines(2, 56 * 56, 1, 96, 56 * 56, 1, 1),
    Lines(64, 49, 1, 768, 49, 1, 1), Lines(1, 1, 1, 5, 1, 1, 5), Lines(3, 7, 1, 2000, 7, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("each", LINES, ids=str)
def test_plans_cover_every_pool_within_the_limits(each: Lines, itemsize: int) -> None:
    for limits in (lines.FORWARD, lines.BACKWARD):
        most = limits.most
        tiles = plan(each, itemsize, limits)
        if tiles is None:
            long = plan_long(each, itemsize)
            assert long.splits * long.walk >= each.length > (long.splits - 1) * long.walk
            assert long.walk % long.values == 0
            assert each.length * (1 if each.step == 1 else 16) > most // 2
            tiles = plan_long(each, itemsize)
        else:
            assert tiles.values >= each.length
        assert tiles.pools * tiles.values <= most
        for size in (tiles.pools, tiles.values, tiles.warps):
            assert size & (size - 1) == 0
        assert tiles.blocks * tiles.pools >= each.inner > (tiles.blocks - 1) * tiles.pools
        assert tiles.tiles == each.samples * tiles.blocks
        assert 1 <= tiles.parts <= tiles.tiles
        assert tiles.pools * tiles.values <= tiles.warps * 32 * 32
        if each.step > 1 and each.inner >= 64 // itemsize:
            assert tiles.pools * itemsize >= 64  # whole sectors of memory
        # As many programs as fill a device, unless a tile is as small as it can be.
        smallest = tiles.pools == (1 if each.step == 1 else 64 // itemsize)
        assert tiles.tiles * each.groups >= lines.FILL or smallest or each.inner < 64


def test_sums_of_parts_are_little_beside_the_data() -> None:
    """They are written and read: 16 bytes for each channel of a part."""
    for each in LINES:
        tiles = plan(each, 2, lines.BACKWARD) or plan_long(each, 2)
        data = each.pools * each.length * 2 * 3  # x, dy, dx
        if tiles.parts > lines.LEAST:
            assert tiles.parts * each.width * 16 <= data / 8


@triton.jit
def _offsets(out, sample_values, values_apart, POOLS: tl.constexpr):  # type: ignore[no-untyped-def]
    pool, begin, here = rows.place(
        tl.program_id(0) + 5, 0, 2, 7, 3, sample_values, 1, values_apart, 4, POOLS
    )
    i = tl.arange(0, POOLS)[:, None]
    tl.store(out + i, pool, here)
    tl.store(out + POOLS + i, begin, here)


def test_offsets_beyond_32_bits() -> None:
    out = torch.full((2, 4), -1)
    _offsets[(1,)](out, 2**33, 2**32, POOLS=4)
    # Tile 5 of two in a sample is the second of sample 2; of its four pools three exist.
    assert out.tolist() == [
        [10, 11, 12, -1],
        [2 * 2**33 + 4 * 2**32, 2 * 2**33 + 5 * 2**32, 2 * 2**33 + 6 * 2**32, -1],
    ]


def test_which_kernels_take_which_layout() -> None:
    position, layer = of_spec(Spec(PER_POSITION, 1e-5)), of_spec(Spec(Pool("group", 1), 1e-5))
    long = torch.empty(3, lines.FORWARD.most + 1)
    many = torch.empty(1, 1).expand(2000, lines.BACKWARD.most + 1)
    for x, problem, backward, expected in (
        (torch.empty(2, 8, 3, 3), position, False, rows),
        (torch.empty(2, 8, 3, 3).contiguous(memory_format=LAST), position, True, rows),
        (torch.empty(2, 5000, 3, 3), position, False, longrows),
        (torch.empty(2, 8), layer, True, rows),
        (many, layer, False, rows),
        (many, layer, True, longrows),
    ):
        assert schedule.kernels_for(x, problem, backward) is expected
    assert schedule.kernels_for(long, layer) is longrows


@pytest.fixture(autouse=True)
def _reproducible_division() -> Iterator[None]:
    before = {name: getattr(lines, name) for name in LONG}
    yield
    assert before == {name: getattr(lines, name) for name in LONG}
