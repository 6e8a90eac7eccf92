"""Weights of the state dicts in a merge."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Iterable, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from normkit.errors import OptionError, message
from normkit.statistics.results.recalibration import Recalibration

__all__ = ["Weights", "read_weights"]

Weights = Iterable[float] | Iterable[Recalibration]


def read_weights(passed: Weights | None, number: int) -> tuple[Tensor, list[Recalibration] | None]:
    """Return the weights, (K,) with the largest 1, and the recalibrations if they are such.

    Raises:
        OptionError: they do not fit.
    """
    ordered = isinstance(passed, Iterable) and not isinstance(passed, (Mapping, Set, str))
    if passed is None:
        listed: list[Any] = [1.0] * number
    elif isinstance(passed, Tensor):
        listed = passed.reshape(-1).tolist()
    else:
        listed = list(passed) if ordered else []
    results = [one for one in listed if isinstance(one, Recalibration)]
    values = [_value(one) for one in listed]
    mixed = 0 < len(results) < len(listed)
    if (
        len(listed) != number
        or mixed
        or not all(0 <= v < math.inf for v in values)
        or not any(values)
    ):
        some = "some of them what recalibrate returned" if mixed else "what recalibrate returned"
        raise OptionError(
            message(
                f"{number} weights, one for each state dict, of 0 or more and not all 0",
                f"{len(listed)}, {some}" if results else f"weights={passed!r}",
                "pass the number of samples of each, or what normkit.recalibrate returned for each",
            )
        )
    if any(one.passes > 1 and len(one.layers) > 1 for one in results):
        warnings.warn(
            "merge got recalibrations that measured layer by layer, each behind its own "
            "statistics, so that the result is not that of all data together; pass "
            "layerwise=False to them",
            stacklevel=3,
        )
    return torch.tensor(values, dtype=torch.float64) / max(values), results or None


def _value(one: object) -> float:
    if isinstance(one, Recalibration):
        return float(one.samples)
    if not isinstance(one, numbers.Real) or isinstance(one, bool):
        return math.nan
    try:
        return float(one)
    except OverflowError:
        return math.inf
