"""Schedules over the batch and groups against the oracle, in the interpreter."""

from __future__ import annotations

import itertools

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.pools import Pool
from normkit.kernels.call import BatchStats, Call
from normkit.kernels.dispatch import normalize
from normkit.kernels.triton import columns, finish, geometry, runs, schedule, whole
from normkit.kernels.triton.problem import Problem, of_spec
from normkit.kernels.triton.terms import span
from tests.few import few
from tests.kernels.oracle import by_oracle
from tests.kernels.triton.agreement import ACTS, assert_as_by_oracle, by_call, draw_tensors
from tests.kernels.triton.conftest import Memory

pytestmark = pytest.mark.usefixtures("by_triton")

LAST = torch.channels_last
POOLS = [Pool("batch"), Pool("ghost", 2), Pool("group", 3), Pool("group", 6)]


def _divide(patch: pytest.MonkeyPatch) -> None:
    """Have toy shapes split into several programs, and these walk over several tiles."""
    for name, value in {"TILE": 64, "LEAST": 32, "LINE": 16, "LEAST_ROWS": 8, "FILL": 6}.items():
        patch.setattr(geometry, name, value)
    for plan in ("_runs", "_columns"):  # without what is remembered of other tests
        patch.setattr(geometry, plan, getattr(geometry, plan).__wrapped__)
    patch.setattr(finish, "AT_ONCE", (2, 4, 8))
    patch.setattr(finish, "OF_CHANNELS", (4, 4))
    patch.setattr(finish, "MANY", 4)


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch) -> None:
    _divide(monkeypatch)


# Nothing to derive, a derivative from the output, and one from what goes in.
MOVED = few([Act("relu"), None, Act("silu")], lambda act: act is not None and act.name == "relu")
EACH = [(pool, last) for pool in POOLS for last in (False, True)]
# `columns` and `runs`, whatever the size of the image.
QUICK = (Pool("batch"), True), (Pool("group", 3), False)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Spec, list[Tensor | None], Tensor]:
    n, c = draw(st.integers(1, 6)), draw(st.integers(1, 20))
    space = draw(st.sampled_from([(), (1, 1), (3,), (3, 3), (5, 13), (2, 3, 4), (11, 13)]))
    kind = draw(st.sampled_from(["batch", "ghost", "group", "instance", "layer"]))
    pool = {
        "batch": Pool("batch"),
        "ghost": Pool("ghost", draw(st.sampled_from([p for p in (1, 2, 3) if n % p == 0]))),
        "group": Pool("group", draw(st.sampled_from([g for g in range(1, c + 1) if c % g == 0]))),
        "instance": Pool("group", c),
        "layer": Pool("group", 1),
    }[kind]
    act, centred = draw(st.sampled_from(ACTS)), draw(st.booleans())
    return Spec(pool, 1e-5, act, centred), *draw_tensors(draw, (n, c, *space))


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(problem=problems(), division=st.sampled_from(["usual", "small", "whole"]))
def test_any_problem(problem: tuple[Spec, list[Tensor | None], Tensor], division: str) -> None:
    spec, tensors, dy = problem
    x = tensors[0]
    assert x is not None
    if spec.pool.count(x.shape[0], x.shape[1], x[0, 0].numel()) == 1:
        return  # x̂ is rounding alone
    with pytest.MonkeyPatch.context() as patch:
        if division == "small":
            _divide(patch)
        if division == "whole":
            patch.setattr(whole, "WARPS", 0)
        assert_as_by_oracle(spec, tensors, dy)


@pytest.mark.parametrize(
    ("pool", "last", "warps"),
    few(
        [*((pool, last, whole.WARPS) for pool, last in EACH[:6]), (POOLS[2], False, 0)],
        lambda pool, last, warps: (pool, last) in QUICK or warps == 0,
    ),
    ids=str,
)
def test_far_from_zero(
    pool: Pool, last: bool, warps: int, divided: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean of 10⁴ and a deviation of 0.1: what rounding takes from the mean is half a percent."""
    monkeypatch.setattr(whole, "WARPS", warps)  # of a group read as a whole: 0
    x = torch.randn(4, 6, 7, 9) * 0.1 + 1e4
    x = x.contiguous(memory_format=LAST) if last else x
    spec, dy = Spec(pool, 1e-5), torch.randn(4, 6, 7, 9)
    assert_as_by_oracle(spec, [x, torch.randn(6), torch.randn(6), None], dy)
    stats = schedule.moments(x, of_spec(spec))
    view = x.double().reshape(pool.view(4, 6, 63))
    mean = view.mean(pool.dims).flatten()
    assert float((stats[0].double() + stats[1].double() - mean).abs().max()) < 1e-6
    var = view.var(pool.dims, correction=0).flatten()
    torch.testing.assert_close(stats[3].double(), var, rtol=1e-6, atol=0)


@pytest.mark.parametrize("last", [False, True])
def test_an_outlier_in_the_first_tile_costs_no_digits(last: bool, divided: None) -> None:
    """The values of a program are summed about the mean of its first tile."""
    x = torch.randn(4, 6, 15, 15)
    x[:, :, 0, 0] = 1e6
    x = x.contiguous(memory_format=LAST) if last else x
    stats = schedule.moments(x, of_spec(Spec(Pool("batch"), 1e-5)))
    mean, var = x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(stats[0].double() + stats[1].double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(stats[3].double(), var, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(4, 6, 7, 9), (5, 6, 2), (7, 6)], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_running_statistics_move_with_the_moments(shape: tuple[int, ...], last: bool) -> None:
    x = torch.randn(shape) * 2 + 3
    if last and x.dim() == 4:
        x = x.contiguous(memory_format=LAST)
    mean, var = torch.randn(6), torch.rand(6)
    layer = torch.nn.BatchNorm1d(6, momentum=0.3) if x.dim() < 4 else torch.nn.BatchNorm2d(6)
    layer.momentum = 0.3
    layer.running_mean, layer.running_var = mean.clone(), var.clone()
    layer(x)
    stats = BatchStats(update=(mean, var, 0.3))
    normalize(Call(x, Spec(Pool("batch"), 1e-5), stats=stats))
    torch.testing.assert_close(mean, layer.running_mean)
    torch.testing.assert_close(var, layer.running_var)


@pytest.mark.parametrize(("pool", "last"), few(EACH[:6], lambda *each: each in QUICK), ids=str)
def test_fixed_statistics_pass_no_gradient_on(pool: Pool, last: bool, divided: None) -> None:
    x, residual, dy = torch.randn(3, 4, 6, 7, 9).unbind()
    if last:
        x, residual, dy = (t.contiguous(memory_format=LAST) for t in (x, residual, dy))
    weight, bias = torch.randn(2, 6).unbind()
    problem = of_spec(Spec(pool, 1e-5, Act("silu")))
    pools = pool.stats(4, 6, 63)
    mean, var = torch.randn(pools), torch.rand(pools) + 0.5
    fixed = schedule.fixed_stats(mean.flatten(), var.flatten(), 1e-5)
    y, stats = schedule.forward(x, weight, bias, residual, problem, fixed)
    assert stats is fixed
    leaves = [t.double().requires_grad_() for t in (x, weight, bias, residual)]
    view, params = pool.view(4, 6, 63), pool.params(6)
    z = (leaves[0].reshape(view) - mean) * (var.double() + 1e-5).rsqrt()
    z = z * leaves[1].reshape(params) + leaves[2].reshape(params)
    truth = torch.nn.functional.silu(z.reshape(x.shape) + leaves[3])
    truth.backward(dy.double())
    grads = schedule.backward(
        dy, x, weight, bias, residual, stats, False, (True,) * 4, problem, own_stats=False
    )
    torch.testing.assert_close(y.double(), truth.detach(), rtol=1e-5, atol=1e-5)
    for got, leaf in zip(grads, leaves, strict=True):
        assert got is not None and leaf.grad is not None
        torch.testing.assert_close(got.double(), leaf.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pool", "last"), few(EACH[:6], lambda *each: each in QUICK), ids=str)
def test_each_gradient_alone_is_that_of_all(pool: Pool, last: bool) -> None:
    x, residual, dy = torch.randn(3, 2, 6, 3, 3).unbind()
    if last:
        x, residual, dy = (t.contiguous(memory_format=LAST) for t in (x, residual, dy))
    weight, bias = torch.randn(2, 6).unbind()
    problem = of_spec(Spec(pool, 1e-5, Act("gelu")))
    stats = schedule.moments(x, problem)
    fixed = (dy, x, weight, bias, residual, stats, False)
    together = schedule.backward(*fixed, (True,) * 4, problem)
    for needs in itertools.product([False, True], repeat=4):
        a, b, c, d = needs
        for gradient, other, need in zip(
            schedule.backward(*fixed, (a, b, c, d), problem), together, needs, strict=True
        ):
            if not need:
                assert gradient is None
            else:
                assert gradient is not None and other is not None and torch.equal(gradient, other)


@pytest.mark.parametrize("act", MOVED, ids=str)
@pytest.mark.parametrize(("pool", "last"), few(EACH, lambda *each: each in QUICK), ids=str)
def test_each_value_is_moved_as_often_as_stated(
    pool: Pool, last: bool, act: Act | None, memory: Memory, divided: None
) -> None:
    """Once for the sums and once for the result."""
    problem = of_spec(Spec(pool, 1e-5, act))
    x, residual, dy = torch.randn(3, 2, 6, 5, 13).unbind()
    if last:
        x, residual, dy = (t.contiguous(memory_format=LAST) for t in (x, residual, dy))
    weight, bias = torch.randn(2, 6).unbind()
    y, stats = schedule.forward(x, weight, bias, residual, problem)
    assert memory.loaded(x) == 2 * x.numel()
    assert memory.loaded(residual) == memory.stored(y) == x.numel()
    assert memory.stored(stats) == stats.numel()
    assert memory.stored_twice() == 0
    memory.loads.clear()
    memory.stores.clear()
    from_output = act == Act("relu")
    other = y if from_output else residual if act else None
    needs = (True, True, True, act is not None)
    grads = schedule.backward(dy, x, weight, bias, other, stats, from_output, needs, problem)
    assert memory.loaded(x) == memory.loaded(dy) == 2 * x.numel()
    if other is not None:
        assert memory.loaded(other) == 2 * x.numel()
    for gradient in grads:
        if gradient is not None:
            assert memory.stored(gradient) == gradient.numel()
    assert memory.stored_twice() == 0


@pytest.mark.parametrize("act", [None, Act("silu"), Act("relu")], ids=str)
def test_groups_that_fit_into_a_tile_are_read_once(
    act: Act | None, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "WARPS", 0)
    problem = of_spec(Spec(Pool("group", 3), 1e-5, act))
    x, residual, dy = torch.randn(3, 2, 6, 5, 13).unbind()
    weight, bias = torch.randn(2, 6).unbind()
    y, stats = schedule.forward(x, weight, bias, residual, problem)
    assert memory.loaded(x) == memory.loaded(residual) == memory.stored(y) == x.numel()
    memory.loads.clear()
    memory.stores.clear()
    from_output = act == Act("relu")
    other = y if from_output else residual if act else None
    needs = (True, True, True, act is not None)
    grads = schedule.backward(dy, x, weight, bias, other, stats, from_output, needs, problem)
    assert memory.loaded(x) == memory.loaded(dy) == x.numel()
    assert other is None or memory.loaded(other) == x.numel()
    assert all(g is None or memory.stored(g) == g.numel() for g in grads)
    assert memory.stored_twice() == 0


@triton.jit
def _offsets(out, unit, row, start, cols):  # type: ignore[no-untyped-def]
    rows = row + tl.arange(0, 4)
    tl.store(out + tl.arange(0, 4), runs.begin_of(unit + rows * 0, rows, 1, 3, 2, cols))
    offset, _, inside = span(start, start + 3, 4)
    tl.store(out + 4 + tl.arange(0, 4), offset)
    tl.store(out + 8, inside)


def test_offsets_beyond_32_bits() -> None:
    out = torch.full((9,), -1)
    _offsets[(1,)](out, 5, 2**20, 2**33, 2**13)
    first = (15 + 2**21) * 2**13
    assert out[:4].tolist() == [first + 2 * i * 2**13 for i in range(4)]
    assert out[4:].tolist() == [2**33, 2**33 + 1, 2**33 + 2, 2**33 + 3, 3]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of NumPy
@pytest.mark.parametrize(("pool", "last"), few(EACH, lambda *each: each in QUICK), ids=str)
def test_infinite_values_stay_in_their_pool(pool: Pool, last: bool, divided: None) -> None:
    """Masked lanes add nothing, whatever the values are."""
    x = torch.randn(4, 6, 5, 5)
    x[0, 0, 0, 0] = torch.inf
    x = x.contiguous(memory_format=LAST) if last else x
    y = by_call(Spec(pool, 1e-5, Act("gelu")), [x, None, None, None], torch.ones_like(x))["y"]
    truth = by_oracle(Spec(pool, 1e-5, Act("gelu")), [x, None, None, None], torch.ones_like(x))["y"]
    assert torch.equal(y.isnan(), truth.isnan())
    torch.testing.assert_close(y.double(), truth, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of NumPy
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("shape", "pool"),
    few(
        itertools.product([(4, 6, 5, 5), (4, 6), (2, 6, 9, 9)], [*POOLS[:3], Pool("position")]),
        lambda shape, pool: shape != (2, 6, 9, 9),
    ),
    ids=str,
)
def test_squares_beyond_float32_are_not_passed_over(shape: tuple[int, ...], pool: Pool) -> None:
    """PyTorch's kernels return β alone, as 1/σ becomes zero."""
    x = torch.randn(shape) * 1e30
    for last in (False, True):
        t = x.contiguous(memory_format=LAST) if last and x.dim() == 4 else x
        assert bool(normalize(Call(t, Spec(pool, 1e-5))).y.isnan().all())


def test_which_kernels_take_which_layout() -> None:
    batch, group = Problem("batch", 1, 1e-5), Problem("group", 2, 1e-5)
    x, short = torch.empty(2, 4, 8, 8), torch.empty(2, 4, 3, 3)
    many = torch.empty(2048, 4, 8, 8, device="meta")
    for t, problem, expected in (
        (x, batch, runs), (short, batch, columns), (torch.empty(2, 4), batch, columns),
        (x, group, runs), (short, group, runs), (many, group, whole),
        (x.contiguous(memory_format=LAST), batch, columns),
        (x.contiguous(memory_format=LAST), group, columns),
    ):  # fmt: skip
        assert schedule.kernels_for(t, problem) is expected
    large = torch.empty(2048, 4, 64, 64, device="meta")
    assert schedule.kernels_for(large, group) is whole
    assert schedule.kernels_for(large, group, backward=True) is runs


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pool", [*POOLS, Pool("group", 96)], ids=str)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 96, 28, 28), torch.bfloat16),
        ((4, 96, 14, 14), torch.float16),
        ((2, 96, 33, 35), torch.float32),
    ],
    ids=str,
)
def test_sizes_of_networks(
    shape: tuple[int, ...], pool: Pool, last: bool, dtype: torch.dtype
) -> None:
    """As large as an interpreter may be asked for, divided as on a GPU."""
    x, residual, dy = (t.to(dtype) for t in (torch.randn(3, *shape) * 2 + 1).unbind())
    x = x.contiguous(memory_format=LAST) if last else x
    weight, bias = torch.randn(2, shape[1]).unbind()
    assert_as_by_oracle(Spec(pool, 1e-5, Act("silu")), [x, weight, bias, residual], dy)
