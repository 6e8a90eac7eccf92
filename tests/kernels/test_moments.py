"""Mean and variance alone, against float64, from every build of the kernels and without them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from normkit.core.pools import PER_CHANNEL, Pool
from normkit.kernels import cpu
from normkit.kernels.moments import moments
from tests.kernels.builds import BUILDS

SHAPES = [
    (4, 3), (1, 5), (300, 7), (64, 512), (2, 3, 1), (5, 4, 9), (3, 2, 3, 2, 5),
    (8, 6, 5, 5), (2, 3, 64, 64), (16, 33, 7, 7), (200, 64, 3, 3), (1, 1, 300, 301),
    (70, 130, 2, 2),
]  # fmt: skip


@pytest.fixture(params=["portable", *BUILDS])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "portable":
        monkeypatch.setattr(cpu, "fused", None)
        yield request.param
        return
    assert cpu.fused is not None
    before = cpu.fused.in_use()
    cpu.fused.use(request.param)
    yield request.param
    cpu.fused.use(before)


def _inputs(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    x = torch.randn(shape, dtype=torch.float64).add(3).to(dtype)
    yield x
    if len(shape) == 4:
        yield x.contiguous(memory_format=torch.channels_last)
        yield x.repeat(1, 1, 2, 1)[:, :, ::2]  # neither
    if len(shape) == 5:
        yield x.contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16],
                         ids=str)  # fmt: skip
def test_against_float64(build: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        for x in _inputs(shape, dtype):
            # Wider than float64, whose own sums are no nearer than what is tested.
            wide = x.double().numpy().astype(np.longdouble)
            axes = [0, *range(2, x.dim())]
            pools = [(PER_CHANNEL, axes)]
            if x.dim() > 2:
                pools.append((Pool("group", shape[1]), axes[1:]))
            for pool, dims in pools:
                found = moments(x, pool)
                mean, variance = (
                    torch.from_numpy(f(wide, axis=tuple(dims)).astype(np.float64).ravel())
                    for f in (np.mean, np.var)
                )
                # Sums of deviations are kept in float32 for all but float64, and merged in it.
                ulp = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
                scale = mean.abs() + variance.sqrt()
                assert ((found.mean - mean).abs() <= 8 * ulp * scale).all(), shape
                off = (found.m2 / found.count - variance).abs()
                assert (off <= 20 * ulp * (variance + 1e-6)).all(), (shape, pool)
                assert found.mean.dtype == found.m2.dtype == found.count.dtype == torch.float64
                assert found.count == x.numel() / found.mean.numel()


def test_far_from_zero(build: str) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = (torch.randn(64, 9, 12, 12) * 0.1 + 1e4).contiguous(memory_format=layout)
        found = moments(x, PER_CHANNEL)
        variance = x.double().var((0, 2, 3), correction=0)
        torch.testing.assert_close(found.m2 / found.count, variance, rtol=1e-5, atol=0)


def test_pytorchs_own_is_not_used_for_a_reason() -> None:
    """Channels-last and far from zero, torch's statistics for batch normalization are noise."""
    x = torch.randn(128, 64, 28, 28) * 0.1 + 1e4
    x = x.contiguous(memory_format=torch.channels_last)
    _, variance = torch.batch_norm_update_stats(x, None, None, 0.1)
    assert (variance / x.double().var((0, 2, 3), correction=0) - 1).abs().max() > 1


def test_empty(build: str) -> None:
    found = moments(torch.zeros(0, 3, 4, 4), PER_CHANNEL)
    assert found.count == 0
    assert torch.equal(found.mean, torch.zeros(3, dtype=torch.float64))


def test_the_input_stays_as_it_is(build: str) -> None:
    for x in _inputs((16, 33, 7, 7), torch.float32):
        before = x.clone()
        moments(x, PER_CHANNEL)
        assert torch.equal(x, before)
