"""Several values of one entry of a state dict made one."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from normkit.errors import OptionError, StatisticsError, message
from normkit.surgery.merging.entries import StatsEntry

__all__ = ["Rule", "apply_rule", "merge_counts", "read_rules"]

Rule = Literal["mean", "first", "max", "sum"]


def read_rules(
    rules: Mapping[str, Rule] | None, names: Collection[str], entries: Sequence[StatsEntry]
) -> dict[str, Rule]:
    """Return the rule of each entry that has one, the first whose name or pattern fits.

    Args:
        entries: the running statistics among them, whose rule can only be the first's.

    Raises:
        OptionError: a rule is unknown, fits no entry, or does not fit a mean or a variance.
    """
    if rules is None:
        return {}
    known = get_args(Rule)
    pairs = list(rules.items()) if isinstance(rules, Mapping) else []
    if not isinstance(rules, Mapping) or any(rule not in known for _, rule in pairs):
        received = next((f"{rule!r} for {key!r}" for key, rule in pairs if rule not in known), None)
        raise OptionError(
            message(
                f"rules of {', '.join(map(repr, known))}, by name or pattern",
                received or f"rules={rules!r}",
                'pass e.g. rules={"*.step": "max"}',
            )
        )
    moments = {name: entry for entry in entries for name in (entry.mean, entry.var)}
    by_name: dict[str, Rule] = {}
    for pattern, rule in pairs:
        fitting = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not fitting:
            raise OptionError(
                message(
                    "rules for entries of the state dicts",
                    f"{pattern!r}, which fits none",
                    f"correct the name; there are, for example, {', '.join([*names][:3])}",
                )
            )
        for name in fitting:
            if name not in by_name and name in moments and rule != "first":
                raise OptionError(
                    message(
                        "running means and variances to be merged as moments, or to be the first's",
                        f"the rule {rule!r} for {name}",
                        'name other entries in the pattern, or use "first"',
                    )
                )
            by_name.setdefault(name, rule)
    for name, entry in moments.items():
        if name in by_name and not {entry.mean, entry.var} <= by_name.keys():
            raise OptionError(
                message(
                    "one rule for a mean and its variance",
                    f"one for {name} alone",
                    f"name both {entry.mean} and {entry.var}",
                )
            )
    return by_name


def apply_rule(name: str, values: Sequence[Any], weights: Tensor, rule: Rule | None) -> Any:
    """Make one of the values of an entry, in its type and on the first's device.

    Args:
        weights: (K,), what each weighs in a mean.
        rule: None takes what is equal in all, and averages floating-point tensors that differ.

    Raises:
        OptionError: a rule does not fit the entry, or there is none and the values differ.
        StatisticsError: the result exceeds its type.

    >>> apply_rule("a", [torch.tensor(1.0), torch.tensor(4.0)], torch.tensor([2.0, 1.0]), None)
    tensor(2.)
    """
    first = values[0]
    inexact = isinstance(first, Tensor) and (first.is_floating_point() or first.is_complex())
    if rule == "first" or (rule in (None, "mean") and _equal(values)):
        return first.detach().clone() if isinstance(first, Tensor) else first
    rule = "mean" if rule is None and inexact else rule
    fits = {"mean": inexact, "max": isinstance(first, Tensor) and not first.is_complex()}
    if rule is None or not isinstance(first, Tensor) or not fits.get(rule, True):
        raise OptionError(
            message(
                "entries that can be averaged, or are equal in all state dicts, or have a rule",
                f"{name}, a {_describe(first)}" + (f", with the rule {rule!r}" if rule else ""),
                f'pass rules={{"{name}": "first"}}, or "max" or "sum" of a tensor',
            )
        )
    wide = torch.complex128 if first.is_complex() else torch.float64
    stacked = torch.stack([value.detach().cpu() for value in values])
    if rule == "max":
        return (stacked if first.dtype == torch.bool else stacked.to(wide)).amax(0).to(
            device=first.device, dtype=first.dtype
        )  # fmt: skip
    if rule == "sum" and not inexact:
        return _sum(name, stacked).to(device=first.device, dtype=first.dtype)
    share = (weights / weights.sum() if rule == "mean" else torch.ones_like(weights)).to(wide)
    one = torch.tensordot(share, stacked.to(wide), 1)
    return _in_range(name, one, first)


def merge_counts(name: str, values: Sequence[Tensor], start: Tensor | None) -> Tensor:
    """Add the batches that the parts have counted since ``start``.

    Raises:
        StatisticsError: there are more than the type holds.
    """
    first = values[0]
    begun = torch.zeros_like(first) if start is None else start.to(first)
    news = torch.stack([(value.to(first) - begun).detach().cpu() for value in values])
    return _sum(name, torch.cat([news, begun.detach().cpu()[None]])).to(first)


def _sum(name: str, stacked: Tensor) -> Tensor:
    if stacked.dtype == torch.bool:
        return stacked.any(0)
    total = stacked.double().sum(0)
    if stacked.is_floating_point():
        return total
    limits = torch.iinfo(stacked.dtype)
    if bool(((total >= float(limits.max)) | (total < limits.min)).any()):
        raise _too_large(name, stacked.dtype)
    return stacked.sum(0)


def _in_range(name: str, value: Tensor, first: Tensor) -> Tensor:
    new = value.to(device=first.device, dtype=first.dtype)
    if not bool(torch.isfinite(new if new.is_complex() else new.double()).all()):
        raise _too_large(name, first.dtype)
    return new


def _too_large(name: str, dtype: torch.dtype) -> StatisticsError:
    return StatisticsError(
        message(
            f"a result within the range of {dtype}",
            f"more in {name}",
            f'convert the state dicts to a wider type, or pass rules={{"{name}": "max"}}',
        )
    )


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
