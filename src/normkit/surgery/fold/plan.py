"""Which layers take the scale and shift of a normalization, found by following the values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from normkit.surgery.fold.hosts import Merged, after, before, is_host
from normkit.surgery.fold.norms import channel_axis, scale_shift
from normkit.surgery.fold.operations import Affine, NotExactError, backward, expand, forward
from normkit.surgery.fold.values import Event, Recording, Value

__all__ = ["NOT_REACHED", "Context", "Merge", "find_merge", "tensor_owners"]

NOT_REACHED = "the example does not reach it"


class Merge(NamedTuple):
    """One normalization and the layers that take its scale and shift.

    Attributes:
        name: of the normalization.
        module: the normalization.
        hosts: the layers by name, with their new weights.
        sources: the values at which the part of the model that changes begins.
        targets: those at which it ends.
    """

    name: str
    module: nn.Module
    hosts: dict[str, tuple[nn.Module, Merged]]
    sources: list[Value]
    targets: list[Value]


class Context(NamedTuple):
    """Facts that the search goes by: the pass, owners of weights, remains of folded layers."""

    recording: Recording
    owners: dict[int, int]
    # By the identity of a layer folded before: None if nothing remains, else what.
    folded: dict[int, str | None]


def find_merge(name: str, module: nn.Module, act: str | None, context: Context) -> Merge:
    """Find where a normalization can go: into the layers before it, else into those after it.

    Args:
        name: its name in the model.
        module: the layer; its calls are in ``context.recording``.
        act: what it does after scale and shift, in words; None if nothing.
        context: the pass, and what was folded before.

    Raises:
        NotExactError: it cannot be folded, with the reason in both directions.
    """
    calls = context.recording.calls.get(id(module), [])
    if not calls:
        if id(module) in context.recording.reached:
            raise NotExactError("called within another layer, whose own code it is a part of")
        raise NotExactError(NOT_REACHED)
    for call in calls:
        if not call.args or not isinstance(call.args[0], Value) or len(call.outputs) != 1:
            raise NotExactError("called with something else than one tensor first")
        if call.outputs[0].maker is not call:
            raise NotExactError("returns its input")
    for tensor in (*module.parameters(), *module.buffers()):
        if context.recording.users.get(id(tensor), set()) - {id(module)}:
            raise NotExactError("its weights or statistics are used elsewhere too")
    try:
        return _merge(name, module, calls, context, _before)
    except NotExactError as error:
        reason = f"not into what comes before: {error}"
    try:
        if act is not None:
            raise NotExactError(f"{act} follows")
        return _merge(name, module, calls, context, _after)
    except NotExactError as error:
        raise NotExactError(f"{reason}; nor after: {error}") from None


_Search = Callable[[Event, Affine, Context], Iterator[tuple[Event, Affine]]]


def _merge(
    name: str, module: nn.Module, calls: list[Event], context: Context, search: _Search
) -> Merge:
    """Return the merge in one direction; each call of each layer concerned has to be in it.

    Raises:
        NotExactError: there is none.
    """
    s, t = scale_shift(module)
    back = search is _before
    reached: dict[int, list[tuple[Event, Merged]]] = {}
    for call in calls:
        x = call.args[0]
        each = expand(s, t, x.shape, channel_axis(module, len(x.shape)))
        for host, there in search(call, each, context):
            merge = after if back else before
            merged = merge(host, there, context.recording, context.owners)
            reached.setdefault(id(host.module), []).append((host, merged))
    hosts: dict[str, tuple[nn.Module, Merged]] = {}
    for identity, pairs in reached.items():
        host, merged = pairs[0]
        assert host.module is not None
        times = len(context.recording.calls[identity])
        if len({id(call) for call, _ in pairs}) != times:
            raise NotExactError(f"{host.name} is called {times} times, not always with it")
        if not all(_equal(merged, other) for _, other in pairs):
            raise NotExactError(
                f"{host.name} is called {times} times, and would need different weights"
            )
        hosts[host.name] = host.module, merged
    host_calls = [call for pairs in reached.values() for call, _ in pairs]
    if back:
        sources = [value for call in host_calls for value in call.inputs]
        targets = [call.outputs[0] for call in calls]
    else:
        sources = [call.args[0] for call in calls]
        targets = [call.outputs[0] for call in host_calls]
    return Merge(name, module, hosts, sources, targets)


def _equal(one: Merged, other: Merged) -> bool:
    pairs = zip(one, other, strict=True)
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def _only_use(value: Value, what: str) -> Event:
    """Return the one event that uses a value and that nothing else looks at.

    Raises:
        NotExactError: there is none such.
    """
    if value.seen_by:
        raise NotExactError(f"{what} is seen by {value.seen_by[0]}")
    if len(value.uses) != 1:
        raise NotExactError(f"{what} is used {len(value.uses)} times")
    if value.overwritten and not _writes(value.uses[0]):
        raise NotExactError(f"{what} is written to")
    return value.uses[0]


def _writes(event: Event) -> bool:
    """Return whether an operation writes over its input, which is then its only use."""
    return event.operation is not None and event.operation._schema.is_mutable


def _before(call: Event, each: Affine, context: Context) -> Iterator[tuple[Event, Affine]]:
    """Yield the calls of layers that made the input of ``call``, with scale and shift there."""
    open_values: list[tuple[Value, Affine]] = [(call.args[0], each)]
    while open_values:
        value, there = open_values.pop()
        maker = value.maker
        _only_use(value, f"the output of {maker.name}" if maker is not None else "its input")
        if maker is None:
            raise NotExactError("no layer made its input")
        if maker.module is None:
            open_values += backward(maker, value, there)
        elif id(maker.module) in context.folded:
            open_values.append((_through(maker, context), there))
        elif is_host(maker.module):
            yield maker, there
        else:
            kind = type(maker.module).__name__
            raise NotExactError(f"{maker.name} is a {kind}, which takes no scale and shift")


def _after(call: Event, each: Affine, context: Context) -> Iterator[tuple[Event, Affine]]:
    """Yield the call of the layer that takes the output of ``call``, with scale and shift there."""
    if call.args[0].overwritten:
        raise NotExactError("its input is written to later")
    if len(call.inputs) != 1:
        raise NotExactError("called with more than one tensor")
    value = call.outputs[0]
    while True:
        user = _only_use(value, "the output of " + (value.maker or call).name)
        if user.module is None:
            each = forward(user, value, each)
        elif id(user.module) in context.folded:
            _through(user, context)
        else:
            yield user, each
            return
        value = user.outputs[0]


def _through(call: Event, context: Context) -> Value:
    """Return the input of a folded layer's call, if that is its output now.

    Raises:
        NotExactError: something remains of it.
    """
    remains = context.folded[id(call.module)]
    if remains is not None:
        raise NotExactError(f"{remains} of {call.name} stands between the two")
    value: Value = call.args[0]
    return value


def tensor_owners(model: nn.Module) -> dict[int, int]:
    """Count the modules of the model that have each parameter and buffer, by its identity."""
    owners: dict[int, int] = {}
    for module in model.modules():
        parameters = module.named_parameters("", recurse=False, remove_duplicate=False)
        buffers = module.named_buffers("", recurse=False, remove_duplicate=False)
        for _, tensor in (*parameters, *buffers):
            owners[id(tensor)] = owners.get(id(tensor), 0) + 1
    return owners
