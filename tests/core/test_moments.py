"""Moments merge exactly, whatever the split."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normkit.core.moments import Moments, merge, merge_rows
from normkit.errors import StatisticsError

values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)


@given(values, st.lists(st.integers(0, 60), max_size=5))
@settings(deadline=None)
def test_any_split_merges_to_the_whole(numbers: list[float], cuts: list[int]) -> None:
    x = torch.tensor(numbers, dtype=torch.float64)
    edges = sorted({0, len(x), *(min(c, len(x)) for c in cuts)})
    # Doubled edges make empty parts.
    edges = sorted([*edges, edges[len(edges) // 2]])
    parts = [Moments.of(x[a:b, None], dim=0) for a, b in itertools.pairwise(edges)]
    whole = merge(parts)
    data = x.numpy()
    scale = max(np.abs(data).max(), 1e-300)
    assert float(whole.count) == len(data)
    assert abs(float(whole.mean) - data.mean()) <= 1e-13 * scale
    m2 = ((data - data.mean()) ** 2).sum()
    assert abs(float(whole.m2) - m2) <= 1e-11 * max(m2, (1e-4 * scale) ** 2)


@given(st.integers(2, 6), st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_order_and_grouping_do_not_matter(parts: int, width: int) -> None:
    x = torch.randn(parts, 7, width, dtype=torch.float64)
    pieces = [Moments.of(p, dim=0) for p in x]
    forth, back = merge(pieces), merge(pieces[::-1])
    nested = merge([merge(pieces[:1]), merge(pieces[1:])])
    for other in (back, nested):
        torch.testing.assert_close(forth.mean, other.mean, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(forth.m2, other.m2, rtol=1e-12, atol=1e-12)


def test_far_from_zero_in_float32() -> None:
    x = (torch.randn(100_000, dtype=torch.float64) * 0.1 + 1e4).float()
    truth = x.double().var(correction=0)
    whole = merge([Moments.of(p, dim=0) for p in x.split(999)])
    assert abs(float(whole.variance) / float(truth) - 1) < 1e-4
    naive = (x.square().mean() - x.mean().square()).item()
    assert abs(naive / float(truth) - 1) > 1, "E[x²] − E[x]² should have failed here"


def test_the_variance_between_parts_counts() -> None:
    parts = [torch.full((10, 1), v) for v in (-1.0, 1.0)]
    assert float(merge([Moments.of(p, dim=0) for p in parts]).variance) == 1.0


def test_rows_equal_parts() -> None:
    pieces = [Moments.of(torch.randn(n, 3), dim=0) for n in (1, 5, 2)]
    rows = merge_rows(
        torch.stack([p.count.expand(3) for p in pieces]),
        torch.stack([p.mean for p in pieces]),
        torch.stack([p.m2 for p in pieces]),
    )
    torch.testing.assert_close(rows.mean, merge(pieces).mean)
    torch.testing.assert_close(rows.m2, merge(pieces).m2)


def test_nothing_but_empty_parts() -> None:
    empty = Moments.of(torch.empty(0, 3), dim=0)
    both = merge([empty, empty])
    assert float(both.count) == 0 and bool((both.mean == 0).all()) and bool((both.m2 == 0).all())


def test_biased_and_unbiased() -> None:
    x = torch.randn(11, 2, dtype=torch.float64)
    m = Moments.of(x, dim=0)
    torch.testing.assert_close(m.variance, x.var(0, correction=0))
    torch.testing.assert_close(m.unbiased, x.var(0, correction=1))


def test_no_parts_is_an_error() -> None:
    with pytest.raises(StatisticsError, match="at least one"):
        merge([])
