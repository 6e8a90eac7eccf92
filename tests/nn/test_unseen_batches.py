"""Batches that nobody can look at, and that have no values, weigh nothing in any average."""

from __future__ import annotations

import itertools

import pytest
import torch

import normkit as nk
from tests.few import few


@pytest.mark.parametrize(
    ("average", "seen"),
    few(
        itertools.product(["cumulative", "debiased", "exponential"], [0, 1]),
        lambda average, seen: (average, seen) in (("exponential", 0), ("cumulative", 1)),
    ),
)
def test_masked_batches_without_values(average: str, seen: int) -> None:
    layer = nk.MaskedBatchNorm1d(6, average=average)
    expected = nk.BatchNorm1d(6, average=average)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    mask = torch.arange(7).expand(4, 7) < 0
    mask = mask.clone()
    mask[0, :seen] = True
    whole = torch.ones(4, 7, dtype=torch.bool)
    for mean in (3.0, 7.0):
        compiled(torch.randn(4, 6, 7), mask=mask)
        x = torch.randn(4, 6, 7) + mean
        compiled(x, mask=whole)
        expected(x)
    torch.testing.assert_close(layer.running_mean, expected.running_mean)
    torch.testing.assert_close(layer.running_var, expected.running_var)
    if average != "exponential":  # which counts empty batches, as torch.nn's does
        assert torch.equal(layer.num_batches_tracked, expected.num_batches_tracked)
