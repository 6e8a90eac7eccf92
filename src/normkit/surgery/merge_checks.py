"""Checks of what :func:`normkit.merge` gets, before anything is computed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from normkit.errors import OptionError, StatisticsError, TypeMismatchError, message
from normkit.handle import place_name
from normkit.statistics.check_arguments import check_model
from normkit.statistics.results.recalibration import Recalibration
from normkit.surgery.merge_rules import Rule
from normkit.surgery.stats_entries import StatsEntry

__all__ = ["State", "check_alike", "check_names", "check_rules", "check_states", "check_weights"]

State = Mapping[str, Any]

# Names listed in an error.
LISTED = 5


def check_states(states: Sequence[State]) -> list[State]:
    """Return the state dicts, two or more.

    Raises:
        OptionError, TypeMismatchError: they are not.
    """
    if isinstance(states, (Mapping, nn.Module, str)) or len(list(states)) < 2:
        received = type(states).__name__ if isinstance(states, (Mapping, nn.Module, str)) else "one"
        received = "none" if received == "one" and not len(list(states)) else received
        raise OptionError(
            message(
                "two or more state dicts",
                received,
                "pass [model.state_dict() for model in models]",
            )
        )
    for number, state in enumerate(states):
        if not isinstance(state, Mapping):
            fix = "pass model.state_dict()"
        elif any(isinstance(value, Mapping) for value in state.values()):
            inner = next(key for key, value in state.items() if isinstance(value, Mapping))
            fix = f"a checkpoint holds one: pass checkpoint[{inner!r}]"
        else:
            continue
        raise TypeMismatchError(
            message("state dicts", f"a {type(state).__name__} at place {number}", fix)
        )
    return list(states)


def check_names(model: nn.Module | None, state: State) -> None:
    """Raise unless the model has the names of the state dict.

    Raises:
        OptionError, TypeMismatchError: it has others, or is no module.
    """
    if model is None:
        return
    check_model(model, "merge")
    names = model.state_dict().keys()
    if differing := sorted(names ^ state.keys()):
        raise OptionError(
            message(
                "a model with the names of the state dicts",
                f"a {type(model).__name__} without the same {', '.join(differing[:LISTED])}",
                "pass the model that one of them loads into, wrapped as it was",
            )
        )


def check_weights(
    weights: Sequence[float] | Sequence[Recalibration] | None, number: int
) -> tuple[Tensor, list[Recalibration] | None]:
    """Return the weights, and the recalibrations if they are such.

    Raises:
        OptionError: they do not fit.
    """
    passed: list[Any] = [1.0] * number if weights is None else [*weights]
    results = [one for one in passed if isinstance(one, Recalibration)]
    numbers = [float(one.samples) if isinstance(one, Recalibration) else one for one in passed]
    plain = all(
        isinstance(one, (int, float)) and not isinstance(one, bool) and 0 <= one < math.inf
        for one in numbers
    )
    mixed = 0 < len(results) < len(passed)
    if len(passed) != number or not plain or mixed or not sum(numbers):
        raise OptionError(
            message(
                f"{number} weights, one for each state dict, of 0 or more and not all 0",
                f"weights={weights!r}"
                if not results
                else f"{len(passed)} weights, some of them what recalibrate returned"
                if mixed
                else f"{len(passed)} of them",
                "pass the number of samples of each, or what normkit.recalibrate returned for each",
            )
        )
    if any(one.passes > 1 for one in results):
        warnings.warn(
            "merge got recalibrations that measured layer by layer, each behind its own "
            "statistics, so that the result is not that of all data together; pass "
            "layerwise=False to them",
            stacklevel=3,
        )
    return torch.tensor(numbers, dtype=torch.float64), results or None


def check_rules(rules: Mapping[str, Rule] | None) -> None:
    """Raise unless all rules are known.

    Raises:
        OptionError: one is not.
    """
    known = get_args(Rule)
    for name, rule in (rules or {}).items():
        if rule not in known:
            raise OptionError(
                message(
                    f"rules of {', '.join(map(repr, known))}",
                    f"{rule!r} for {name!r}",
                    'pass e.g. rules={"*.step": "max"}',
                )
            )


def check_alike(states: Sequence[State], entries: Sequence[StatsEntry]) -> None:
    """Raise unless the state dicts have the same entries, with finite values.

    Raises:
        OptionError, TypeMismatchError, StatisticsError: as :func:`normkit.merge`.
    """
    first = states[0]
    for number, state in enumerate(states[1:], start=1):
        kinds = {
            "missing": [name for name in first if name not in state],
            "unexpected": [name for name in state if name not in first],
            "of another shape or type": [
                name
                for name, value in first.items()
                if name in state and _form(state[name]) != _form(value)
            ],
        }
        differing = "; ".join(
            f"{kind} {', '.join(names[:LISTED])}"
            + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
            for kind, names in kinds.items()
            if names
        )
        if differing:
            raise OptionError(
                message(
                    "state dicts of one architecture, with the same names, shapes and types",
                    f"at place {number}: {differing}",
                    "merge what was saved from models built alike; convert types first",
                )
            )
    for name, value in first.items():
        for tensor in (state[name] for state in states if isinstance(value, Tensor)):
            _check_tensor(name, tensor)
    for entry in entries:
        if first[entry.mean].shape != first[entry.var].shape:
            raise OptionError(
                message(
                    f"a mean and a variance of one shape in {place_name(entry.layer)}",
                    f"{tuple(first[entry.mean].shape)} and {tuple(first[entry.var].shape)}",
                    "pass model=, whose layers tell which entries are running statistics",
                )
            )


def _form(value: Any) -> object:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)


def _check_tensor(name: str, tensor: Tensor) -> None:
    odd = (
        "lazy" if is_lazy(tensor)
        else "sharded" if hasattr(tensor, "device_mesh")
        else "on the meta device" if tensor.is_meta
        else "quantized" if tensor.is_quantized
        else "sparse" if tensor.layout is not torch.strided
        else None
    )  # fmt: skip
    if odd is not None:
        raise TypeMismatchError(
            message(
                "plain tensors with values",
                f"{name}, which is {odd}",
                "save a whole state dict of a model with values, such as "
                "torch.distributed.checkpoint.state_dict's get_model_state_dict with "
                "full_state_dict=True"
                if odd == "sharded"
                else "pass the state dict of a model that has run once, before it is packed",
            )
        )
    inexact = tensor.is_floating_point() or tensor.is_complex()
    if inexact and not bool(torch.isfinite(tensor).all()):
        raise StatisticsError(
            message(
                "finite values",
                f"NaN or infinity in {name}",
                "omit that state dict; of running statistics alone, normkit.recalibrate its model",
            )
        )
