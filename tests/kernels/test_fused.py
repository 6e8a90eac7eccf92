"""The fused kernels against the oracle in float64: any pool, shape, layout, type and build."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import normkit as nk
from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import PER_CHANNEL, PER_POSITION, Pool
from normkit.kernels import cpu
from normkit.kernels.call import Call
from normkit.kernels.dispatch import normalize
from tests.kernels.builds import BUILDS
from tests.kernels.oracle import Results, by_oracle, results, terms
from tests.tolerances import assert_accurate

pytestmark = pytest.mark.skipif(cpu.fused is None, reason=cpu.reason or "built")

ACTS = [None, Act("relu"), Act("relu6"), Act("leaky_relu", 0.2), Act("silu"), Act("gelu")]
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    assert cpu.fused is not None
    build, threads = cpu.fused.in_use(), torch.get_num_threads()
    cache = cpu.fused.assume_cache(1)
    cpu.fused.assume_cache(cache)
    yield
    cpu.fused.use(build)
    cpu.fused.assume_cache(cache)
    torch.set_num_threads(threads)


def _by_layer(spec: Spec, tensors: list[Tensor | None], dy: Tensor) -> Results:
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    x, w, b, r = leaves
    assert x is not None
    y = normalize(Call(x, spec, w, b, r)).y
    y.backward(dy)
    return results(y, leaves)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Spec, list[Tensor | None], Tensor]:
    n, c = draw(st.integers(1, 9)), draw(st.integers(1, 70))
    space = draw(st.sampled_from([(), (1, 1), (3, 3), (7, 7), (5, 13), (2, 3, 4), (33, 31)]))
    if space != (33, 31) and draw(st.booleans()):  # more samples and channels
        n, c = draw(st.sampled_from([16, 37])), draw(st.sampled_from([96, 128, 260]))
    dtype, seed = draw(st.sampled_from(TYPES)), draw(st.integers(0, 2**31))
    kind = draw(st.sampled_from(["batch", "ghost", "group", "instance", "layer", "position"]))
    divisors = [g for g in range(1, c + 1) if c % g == 0]
    pool = {
        "batch": PER_CHANNEL,
        "ghost": Pool("ghost", draw(st.sampled_from([p for p in (1, 2, 3) if n % p == 0]))),
        "group": Pool("group", draw(st.sampled_from(divisors))),
        "instance": Pool("group", c),
        "layer": Pool("group", 1),
        "position": PER_POSITION,
    }[kind]
    spec = Spec(pool, 1e-5, draw(st.sampled_from(ACTS)), draw(st.booleans()))
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x = random(n, c, *space) * 2 + draw(st.sampled_from([0, 3]))
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last and draw(st.booleans()):
        x = x.contiguous(memory_format=last)
    if draw(st.booleans()):  # every second sample of a larger tensor
        x = x.repeat_interleave(2, 0)[::2]
    wide = accumulator(dtype)
    weight = random(c).to(wide) if draw(st.booleans()) else None
    bias = random(c).to(wide) if draw(st.booleans()) else None
    residual = random(n, c, *space) if draw(st.booleans()) else None
    return spec, [x, weight, bias, residual], random(n, c, *space)


@pytest.mark.parametrize("build", BUILDS)
@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(problem=problems(), past=st.booleans())
def test_any_problem(
    build: str, problem: tuple[Spec, list[Tensor | None], Tensor], past: bool
) -> None:
    assert cpu.fused is not None
    spec, tensors, dy = problem
    x = tensors[0]
    assert x is not None
    if spec.pool.count(x.shape[0], x.shape[1], x[0, 0].numel()) == 1:
        return  # x̂ is rounding alone; tests/nn/test_oracle.py has it
    if spec.act is not None and spec.act.derivative_from_output:
        # No gradient where rounding decides on which side of the kink a value lies.
        z = by_oracle(dataclasses.replace(spec, act=None), tensors, dy)["y"]
        dy = dy.masked_fill(z.abs() < 1e-4, 0)
    cpu.fused.use(build)
    cpu.fused.assume_cache(0 if past else 2**60)  # results written past it, or not
    truth, got = by_oracle(spec, tensors, dy), _by_layer(spec, tensors, dy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "fused", None)
        portable = _by_layer(spec, tensors, dy)
    limits = terms(spec, tensors, dy)
    for name, value in got.items():
        assert_accurate(value, truth[name], portable[name], name, limits.get(name, 0.0))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(6, 3, 90, 91), (32, 37, 20, 20), (2, 48, 64, 65), (16, 96, 7, 7), (64, 260, 2, 2)],
    ids=str,
)
@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize(
    "pool", [PER_CHANNEL, Pool("ghost", 2), Pool("group", 1), PER_POSITION], ids=str
)
def test_bits_do_not_depend_on_the_number_of_threads(
    pool: Pool, shape: tuple[int, ...], last: bool, past: bool
) -> None:
    assert cpu.fused is not None
    cpu.fused.assume_cache(0 if past else 2**60)
    spec = Spec(pool, 1e-5, Act("relu"))
    x, dy = torch.randn(2, *shape).unbind()
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    tensors: list[Tensor | None] = [x, torch.randn(shape[1]), torch.randn(shape[1]), None]
    found = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        found.append(_by_layer(spec, tensors, dy))
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in found[0])


def test_the_gradient_is_written_over_dy_only_where_nobody_sees_it() -> None:
    x = torch.randn(8, 4, 6, 6, requires_grad=True)
    y = normalize(Call(x, Spec(PER_CHANNEL, 1e-5))).y
    dy = torch.randn_like(y)
    kept = dy.clone()
    y.backward(dy)
    assert torch.equal(dy, kept)
    # And of a tensor that others look at through a view.
    y = normalize(Call(x, Spec(PER_CHANNEL, 1e-5))).y
    seen = []
    y.register_hook(lambda g: seen.append(g.view(-1)))
    (y * 2).sum().backward()
    assert bool((seen[0] == 2).all())


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.skipif(
    os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 20 * 2**30, reason="takes 18 GB"
)
@pytest.mark.parametrize("last", [False, True])
def test_more_than_two_to_the_31_values(last: bool) -> None:
    """18 GB. Every index beyond 32 bits is seen by comparing the last values."""
    shape = (1, 4, 2**29 + 60, 1)
    laid = torch.channels_last if last else torch.contiguous_format

    def repeated(pattern: list[int]) -> Tensor:
        assert shape[2] % len(pattern) == 2  # so that the last do not lie as the first
        made = torch.empty(shape, dtype=torch.bfloat16, memory_format=laid)
        one = torch.tensor(pattern, dtype=torch.bfloat16).repeat(shape[2] // len(pattern) + 1)
        return made.copy_(one[: shape[2]].reshape(1, 1, -1, 1))

    x, dy = repeated([0, 1, 2, 3, 4]).requires_grad_(), repeated([3, 1, 2, 0, 2])
    # Five values stand for all, up to 2 of 2²⁹.
    few = torch.tensor([[0.0, 1, 2, 3, 4]], dtype=torch.float64, requires_grad=True)
    z = ((few - few.mean()) / (few.var(correction=0) + 1e-5).sqrt()).clamp_min(0)
    (expected,) = torch.autograd.grad(z, few, torch.tensor([[3.0, 1, 2, 0, 2]]).double())
    y = normalize(Call(x, Spec(PER_CHANNEL, 1e-5, Act("relu")))).y
    (dx,) = torch.autograd.grad(y, x, dy)
    for got, truth in ((y.detach(), z.detach()), (dx, expected)):
        for channel in range(4):
            end = got[0, channel, -7:, 0].double()
            assert (end - truth[0, [0, 1, 2, 3, 4, 0, 1]]).abs().max() < 1e-2
        total = float(got[0, 3].sum(dtype=torch.float64)) / shape[2]
        assert abs(total - float(truth.mean())) < 1e-3


@pytest.mark.slow  # compiles twice, seven seconds; nothing else asks for words of the node
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_autograd_calls_the_kernels() -> None:
    """The node is one call in its graph; without words for it, it would be refused."""
    from torch._dynamo import compiled_autograd  # here, as it takes seconds

    bn, frozen = nk.BatchNorm2d(3, bias=False, act="silu"), nk.FrozenBatchNorm2d(3, act="relu")
    layer = nk.LayerNorm((3, 5, 6))

    def leaves(n: int) -> list[Tensor]:
        x, residual = (t.requires_grad_() for t in torch.randn(2, n, 3, 5, 6).unbind())
        return [x, residual, *bn.parameters(), *layer.parameters()]

    def loss(x: Tensor, residual: Tensor) -> Tensor:
        found: Tensor = layer(frozen(bn(x, residual), x), residual).square().sum()
        return found

    for n in (4, 2):  # the second time with another size
        inputs = leaves(n)
        expected = torch.autograd.grad(loss(*inputs[:2]), inputs)
        for t in inputs:
            t.grad = None
        total = loss(*inputs[:2])
        with compiled_autograd._enable(torch.compile(backend="eager")):
            total.backward()
        for t, grad in zip(inputs, expected, strict=True):
            torch.testing.assert_close(t.grad, grad)
        with pytest.raises(RuntimeError, match="second time"):
            total.backward()
