"""Combinations of options, as few as hold every pair: most faults lie in one option or in two."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any


def pairwise(dimensions: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Return cases that hold every pair of values of two dimensions, greedily few."""

    def pairs(case: tuple[Any, ...]) -> set[tuple[int, int, Any, Any]]:
        return {(i, j, case[i], case[j]) for i, j in itertools.combinations(range(len(case)), 2)}

    cases = list(itertools.product(*dimensions))
    missing = set().union(*map(pairs, cases))
    chosen = []
    while missing:
        best = max(cases, key=lambda case: len(pairs(case) & missing))
        missing -= pairs(best)
        chosen.append(best)
    return chosen
