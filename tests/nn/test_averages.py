"""What layers remember: exponential, cumulative, debiased; biased to use, unbiased to keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import normkit as nk
from normkit.core import reference

KINDS = ["exponential", "cumulative", "debiased"]


def _feed(layer: nn.Module, batches: list[torch.Tensor]) -> None:
    for x in batches:
        layer(x)


@given(
    st.sampled_from(KINDS),
    st.floats(0.001, 1.0),
    st.lists(st.integers(2, 6), min_size=1, max_size=8),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_against_the_definition(kind: str, momentum: float, sizes: list[int], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    batches = [torch.randn(n, 3, generator=g, dtype=torch.float64) * 3 + 1 for n in sizes]
    layer = nk.BatchNorm1d(3, momentum=momentum, average=kind).double()
    _feed(layer, batches)
    means, variances = [b.mean(0) for b in batches], [b.var(0) for b in batches]
    mean = reference.ema(means, momentum, torch.zeros(3), kind)
    var = reference.ema(variances, momentum, torch.ones(3), kind)
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_var, var, rtol=1e-12, atol=1e-12)
    assert int(layer.num_batches_tracked) == len(sizes)


def test_debiased_forgets_the_start_at_once() -> None:
    layer = nk.BatchNorm1d(1, momentum=0.01, average="debiased")
    layer(torch.tensor([[99.0], [101.0]]))
    torch.testing.assert_close(layer.running_mean, torch.tensor([100.0]))
    biased = nk.BatchNorm1d(1, momentum=0.01)
    biased(torch.tensor([[99.0], [101.0]]))
    torch.testing.assert_close(biased.running_mean, torch.tensor([1.0]))


def test_caffes_decay_is_the_share_kept() -> None:
    """Decay 0.95 of the sources is momentum 0.05 here."""
    x = torch.tensor([[0.0], [2.0]])
    layer = nk.BatchNorm1d(1, momentum=1 - 0.95)
    layer(x)
    torch.testing.assert_close(layer.running_mean, torch.tensor([0.05 * 1.0]))


def test_cumulative_is_momentum_none_of_torch() -> None:
    ours, theirs = nk.BatchNorm2d(3, average="cumulative"), nn.BatchNorm2d(3, momentum=None)
    for n in (2, 5, 3):
        x = torch.randn(n, 3, 4, 4)
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_moves_no_average(kind: str) -> None:
    layer = nk.BatchNorm2d(3, average=kind)
    x = torch.randn(4, 3, 2, 2)
    layer(x)
    mean = layer.running_mean.clone()
    layer(x[:0])
    assert torch.equal(layer.running_mean, mean)
    expected = 2 if kind == "exponential" else 1  # only PyTorch's own average counts it
    assert int(layer.num_batches_tracked) == expected


def test_ghost_batches_remember_the_whole_batch() -> None:
    x = torch.randn(10, 3, 4, 4) * 2 + torch.arange(10.0).view(10, 1, 1, 1)
    ghost, plain = nk.GhostBatchNorm2d(3, 4), nk.BatchNorm2d(3)
    ghost(x)
    plain(x)
    torch.testing.assert_close(ghost.state_dict(), plain.state_dict())


@pytest.mark.parametrize("n", [1, 2, 7, 32, 33, 64, 100])
@pytest.mark.parametrize("size", [1, 2, 32, 1000])
def test_ghost_parts(n: int, size: int) -> None:
    sizes = nk.GhostBatchNorm2d(2, size).part_sizes(n)
    assert sum(sizes) == n and max(sizes) <= size and max(sizes) - min(sizes) <= 1
    y = nk.GhostBatchNorm2d(2, size)(torch.randn(n, 2, 3, 3)).detach()
    start = 0
    for part in sizes:  # each part has mean 0 by itself
        assert float(y[start : start + part].mean((0, 2, 3)).abs().max()) < 1e-5
        start += part


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_input_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    """65504 is the largest float16; the sum of these values is far above."""
    x = torch.full((64, 1, 32, 32), 100.0, dtype=dtype)
    x[::2] += 8
    layer = nk.BatchNorm2d(1, momentum=1.0)
    y = layer(x)
    torch.testing.assert_close(layer.running_mean, torch.tensor([104.0]))
    assert layer.running_mean.dtype == torch.float32
    torch.testing.assert_close(y[0, 0, 0, 0], torch.tensor(1.0, dtype=dtype))


def test_statistics_pause_and_go_on() -> None:
    layer = nk.BatchNorm2d(3)
    layer.track_running_stats = False
    layer(torch.randn(4, 3, 2, 2))
    assert int(layer.num_batches_tracked) == 0
    layer.track_running_stats = True
    layer(torch.randn(4, 3, 2, 2))
    assert int(layer.num_batches_tracked) == 1
    layer.reset_running_stats()
    assert int(layer.num_batches_tracked) == 0
