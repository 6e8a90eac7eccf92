"""Checks of what :func:`normkit.merge` gets, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from normkit.errors import OptionError, StatisticsError, TypeMismatchError, message
from normkit.handle import place_name
from normkit.statistics.check_arguments import check_model
from normkit.statistics.layers.find import COUNTER
from normkit.surgery.merging.entries import StatsEntry

__all__ = [
    "State",
    "check_names",
    "check_same",
    "check_state",
    "check_states",
    "check_stats",
    "check_tensors",
]

State = Mapping[str, Any]

# Names listed in an error.
LISTED = 5

EXTRA = "_extra_state"


def check_states(passed: Iterable[State]) -> list[State]:
    """Return the state dicts, two or more, each with tensors of its own.

    Raises:
        OptionError, TypeMismatchError: they are not.
    """
    whole = isinstance(passed, (Mapping, nn.Module, str)) or not isinstance(passed, Iterable)
    states: list[Any] = [] if whole else list(passed)
    if len(states) < 2:
        received = f"a {type(passed).__name__}" if whole else "one" if states else "none"
        fix = "pass [model.state_dict() for model in models]"
        raise OptionError(message("two or more state dicts", received, fix))
    for number, state in enumerate(states, start=1):
        check_state(state, f"number {number}")
        for before in range(number - 1):
            if _share_all(states[before], state):
                raise OptionError(
                    message(
                        "state dicts with tensors of their own",
                        f"the same tensors in numbers {before + 1} and {number}",
                        "state_dict() does not copy: take {name: value.clone() for name, value in "
                        "model.state_dict().items()} before the model changes",
                    )
                )
    return states


def check_state(state: object, called: str) -> None:
    """Raise unless this is a state dict.

    Raises:
        TypeMismatchError: it is not.
    """
    if (fix := _why_no_state(state)) is not None:
        raise TypeMismatchError(
            message("state dicts", f"a {type(state).__name__} as {called}", fix)
        )


def _why_no_state(state: object) -> str | None:
    """Return what to pass in place of ``state``; None if it is a state dict."""
    if not isinstance(state, Mapping) or any(not isinstance(name, str) for name in state):
        return "pass model.state_dict()"
    for name, value in state.items():
        if isinstance(value, Mapping) and not name.endswith(EXTRA):
            return f"a checkpoint holds one: pass checkpoint[{name!r}]"
        if type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "dtype"):
            return f"{name} is NumPy's: convert with torch.from_numpy"
    return None


def _share_all(a: State, b: State) -> bool:
    pairs = [
        (value, b.get(name))
        for name, value in a.items()
        if isinstance(value, Tensor) and not is_lazy(value) and value.numel()
    ]
    plain = (torch.Tensor, nn.Parameter)
    return bool(pairs) and all(
        type(one) in plain
        and isinstance(two, Tensor)
        and type(two) in plain
        and not one.is_meta
        and one.layout is torch.strided
        and two.layout is torch.strided
        and one.data_ptr() == two.data_ptr()
        for one, two in pairs
    )


def check_names(model: nn.Module | None, state: State) -> None:
    """Raise unless the model has the names of the state dict.

    Raises:
        OptionError, TypeMismatchError: it has others, or is no module.
    """
    if model is None:
        return
    check_model(model, "merge")
    names = model.state_dict().keys()
    # Files of former versions of torch lack the counter, which torch accepts.
    missing = {name for name in names - state.keys() if not name.endswith(COUNTER)}
    if differing := sorted(missing | (state.keys() - names)):
        raise OptionError(
            message(
                "a model with the names of the state dicts",
                f"a {type(model).__name__}, where these differ: {_list(differing)}",
                "pass the model that one of them loads into, wrapped as it was",
            )
        )


def check_same(first: State, others: Mapping[str, State]) -> None:
    """Raise unless the others, by what they are called, have the first's names, shapes and types.

    Raises:
        OptionError: they have not.
    """
    for called, state in others.items():
        kinds = {
            "missing": [name for name in first if name not in state],
            "unexpected": [name for name in state if name not in first],
            "of another shape or type": [
                name
                for name, value in first.items()
                if name in state and _form(state[name]) != _form(value)
            ],
        }
        if differing := "; ".join(f"{kind} {_list(n)}" for kind, n in kinds.items() if n):
            raise OptionError(
                message(
                    "state dicts of one architecture, with the same names, shapes and types",
                    f"in {called}, beside the first: {differing}",
                    "merge what was saved from models built alike; convert types first",
                )
            )


def check_tensors(states: Sequence[State]) -> None:
    """Raise unless all tensors are plain ones, with finite values or the same in all.

    Raises:
        TypeMismatchError, StatisticsError: they are not.
    """
    for number, state in enumerate(states, start=1):
        for name, value in state.items():
            if not isinstance(value, Tensor):
                continue
            if (odd := _oddity(value)) is not None:
                raise TypeMismatchError(
                    message(
                        "plain tensors with values",
                        f"{name} of number {number}, which is {odd}",
                        "save a whole state dict of a model that has run once, before it is packed",
                    )
                )
            if _is_finite(value):
                continue
            # A mask of −inf is the same in all.
            if not all(torch.equal(value.cpu(), other[name].cpu()) for other in states):
                raise StatisticsError(
                    message(
                        "finite values, or the same in all state dicts",
                        f"NaN or infinity in {name} of number {number}",
                        "omit that one; of statistics alone, normkit.recalibrate its model",
                    )
                )


def check_stats(states: Sequence[State], entries: Sequence[StatsEntry]) -> None:
    """Raise unless running statistics are what they seem: real, finite, a variance to each mean.

    Raises:
        OptionError, StatisticsError: they are not.
    """
    first = states[0]
    for entry in entries:
        mean, var = first[entry.mean], first[entry.var]
        tensors = isinstance(mean, Tensor) and isinstance(var, Tensor)
        if not tensors or not var.is_floating_point() or mean.shape != var.shape:
            raise OptionError(
                message(
                    f"a mean and a variance of one shape in {place_name(entry.layer)}",
                    f"{_form(mean)} and {_form(var)}",
                    "pass model=, whose layers tell which entries are running statistics",
                )
            )
        for number, state in enumerate(states, start=1):
            for name in (entry.mean, entry.var):
                if not _is_finite(state[name]):
                    raise StatisticsError(
                        message(
                            "finite running statistics",
                            f"NaN or infinity in {name} of number {number}",
                            "normkit.recalibrate its model, or omit it",
                        )
                    )


def _form(value: Any) -> object:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else type(value)


def _oddity(tensor: Tensor) -> str | None:
    if is_lazy(tensor):
        return "lazy"
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_meta:
        return "on the meta device"
    if tensor.is_quantized:
        return "quantized"
    return "sparse" if tensor.layout is not torch.strided else None


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    wide = tensor if tensor.is_complex() or tensor.element_size() > 1 else tensor.float()
    return bool(torch.isfinite(wide).all())


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
