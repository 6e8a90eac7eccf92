"""Several values of one entry of a state dict made one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from normkit.errors import OptionError, StatisticsError, message

__all__ = ["Rule", "apply_rule"]

Rule = Literal["mean", "first", "max", "sum"]


def apply_rule(name: str, values: Sequence[Any], weights: Tensor, rule: Rule | None) -> Any:
    """Make one of the values of an entry, in its type and on the first's device.

    Args:
        weights: (K,), what each weighs in a mean.
        rule: None averages floating-point tensors, and takes of others what is equal in all.

    Raises:
        OptionError: a rule does not fit the entry, or there is none and the values differ.
        StatisticsError: the result exceeds its type.

    >>> apply_rule("a", [torch.tensor(1.0), torch.tensor(4.0)], torch.tensor([2.0, 1.0]), None)
    tensor(2.)
    """
    first = values[0]
    inexact = isinstance(first, Tensor) and (first.is_floating_point() or first.is_complex())
    rule = "mean" if rule is None and inexact else rule
    if rule == "first" or (rule is None and _equal(values)):
        return first.detach().clone() if isinstance(first, Tensor) else first
    if rule is None or not isinstance(first, Tensor) or (rule == "mean" and not inexact):
        raise OptionError(
            message(
                "entries that can be averaged, or are equal in all state dicts, or have a rule",
                f"{name}, a {_describe(first)}" + (f", with the rule {rule!r}" if rule else ""),
                f'pass rules={{"{name}": "first"}}, or "max" or "sum" of a tensor',
            )
        )
    wide = torch.complex128 if first.is_complex() else torch.float64
    stacked = torch.stack([value.detach().cpu() for value in values])
    if rule == "mean":
        share = (weights / weights.sum()).reshape(-1, *[1] * first.dim()).to(wide)
        one = (stacked.to(wide) * share).sum(0)
    elif rule == "sum":
        one = stacked.sum(0, dtype=wide if inexact else None)
    else:
        one = stacked.amax(0)
    new = one.to(device=first.device, dtype=first.dtype)
    if inexact and not bool(torch.isfinite(new).all()):
        raise StatisticsError(
            message(
                f"a result within the range of {first.dtype}",
                f"more in {name}",
                "convert the state dicts to float32 first",
            )
        )
    return new


def _equal(values: Sequence[Any]) -> bool:
    first = values[0]
    if isinstance(first, Tensor):
        return all(torch.equal(first.cpu(), value.cpu()) for value in values[1:])
    try:
        return all(bool(first == value) for value in values[1:])
    except Exception:  # objects that cannot be compared
        return False


def _describe(value: Any) -> str:
    return f"tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
