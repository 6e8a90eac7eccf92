"""Which layers of a model a conversion changes, how, and which it leaves."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from normkit.handle import Changed, Skipped, Step
from normkit.nn.foreign import original_class
from normkit.nn.freezing import base_class, is_constant
from normkit.nn.norm_spec import equivalent
from normkit.nn.stats_spec import overrides_forward
from normkit.surgery.conversion.activations import put_out, why_not_put_out
from normkit.surgery.conversion.calls import Calls
from normkit.surgery.conversion.groups import check_divides
from normkit.surgery.conversion.kinds import BATCH, SAMPLE, Target
from normkit.surgery.conversion.layers import (
    CONSTANT,
    channels,
    form,
    groups_after,
    pool,
    pool_after,
    why_other,
    why_skipped,
    why_still_constant,
)
from normkit.surgery.conversion.parallel import list_buffers
from normkit.surgery.conversion.states import converted_state, sizes_note
from normkit.surgery.conversion.sync_groups import check_group_size, process_group
from normkit.surgery.freezable import check_finite
from normkit.surgery.modules import AWAITED, PARALLEL, awaited, in_parallel, walk
from normkit.surgery.new_state import as_foreign, state_change
from normkit.surgery.trainable import NEW_PARAMETERS, trainable_class, trainable_state

__all__ = ["Conversion", "Plan", "plan"]


class Conversion(NamedTuple):
    """One layer to convert: its row, and the class that it becomes.

    ``source``: the layer itself, or a twin of this package that computes what a layer of another
    library does, with the modules ``then`` after it.
    """

    row: Changed
    module: nn.Module
    source: nn.Module
    after: type[nn.Module]
    then: list[nn.Module]

    @property
    def name(self) -> str:
        """Name of the layer in its model."""
        return self.row.name


class Plan:
    """Rows of a conversion to one kind, the steps that make it, and what they will change.

    ``done``: whether layers are of that kind already.
    """

    def __init__(self) -> None:
        self.constant: list[tuple[Changed, Step]] = []
        self.conversions: list[Conversion] = []
        self.skipped: list[Skipped] = []
        self.done = False

    def differing(self, target: Target) -> list[Conversion]:
        """Return the layers that will normalize by something else in evaluation than now."""
        return [
            one for one in self.conversions if pool(one.source) != pool_after(one.source, target)
        ]

    def rows_and_steps(self, model: nn.Module, target: Target) -> tuple[list[Changed], list[Step]]:
        """Return the rows in the model's order, and the steps. All checks come before."""
        size = target.group_size
        group = process_group(size) if size and self.conversions else None
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        order = {name: i for i, (name, _) in enumerate(walk(model))}
        pairs: list[tuple[Changed, list[Step]]] = [(row, [step]) for row, step in self.constant]
        for one in self.conversions:
            tensor = next((t for t in one.module._parameters.values() if t is not None), like)
            new = converted_state(one.source, target, one.after, tensor.detach(), group)
            if one.source is not one.module:
                new = as_foreign(one.module, one.source, new)
            row, each = one.row, [state_change(one.name, one.module, new)]
            if one.then:
                step, note = put_out(model, one.name, one.module, one.then)
                each.append(step)
                row = row._replace(note="; ".join(filter(None, (row.note, note))))
            pairs.append((row, each))
        pairs.sort(key=lambda pair: order[pair[0].name])
        steps = [step for _, each in pairs for step in each]
        return [row for row, _ in pairs], [*list_buffers(model), *steps, *list_buffers(model)]


def plan(model: nn.Module, target: Target, calls: Calls) -> Plan:
    """Decide for each layer of ``model`` what becomes of it.

    Raises:
        OptionError: groups that do not divide the channels of a layer, or the processes.
        StatisticsError: a layer's statistics are not finite, for "frozen".
    """
    result, parallel = Plan(), in_parallel(model)
    lost = awaited(model) if target.name == "frozen" else frozenset[int]()
    for name, module in walk(model):
        before = base_class(type(module))
        if is_constant(module):
            if target.name == "frozen" and before in CONSTANT:
                result.done = True
            elif (why := why_still_constant(module, target)) is not None:
                result.skipped.append(Skipped(name, before, why))
            elif id(module) in parallel:
                result.skipped.append(Skipped(name, before, PARALLEL))
            else:
                row = Changed(name, before, trainable_class(module), note=NEW_PARAMETERS)
                result.constant.append((row, state_change(name, module, trainable_state(module))))
            continue
        source, then = _source(module)
        if source is not module:
            calls.share(module, source)
        kind = base_class(type(source))
        known = kind in BATCH or (target.kind.converts_all and kind in SAMPLE)
        if not known and not isinstance(module, nn.modules.batchnorm._BatchNorm):
            if (other := why_other(module, target)) is not None:
                result.skipped.append(Skipped(name, before, other))
            continue
        after = form(source, target, calls)
        if after is before and _is_done(module, target):
            result.done = True
            continue
        why = why_skipped(source, target, after, calls) or (
            why_not_put_out(model, module) if then else None
        )
        if why is not None or after is None:
            result.skipped.append(Skipped(name, before, why or "there is no such layer"))
            continue
        if any(id(p) in lost for p in module.parameters(recurse=False)):
            result.skipped.append(Skipped(name, before, AWAITED))
            continue
        row = Changed(name, before, after, note=_note(source, target, after))
        result.conversions.append(Conversion(row, module, source, after, then))
    _check(result, target)
    return result


def _source(module: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """Return a layer here that computes what ``module`` does, and modules to call after it.

    A layer of another library has a twin; all others, and plain subclasses, are their own source.
    """
    cls = original_class(base_class(type(module)))
    twin = equivalent(module) if overrides_forward(cls) else None
    return twin or (module, [])


def _check(result: Plan, target: Target) -> None:
    layers = [(one.name, one.source) for one in result.conversions]
    if target.name == "group" and target.number is not None:
        check_divides(target.number, [(name, channels(module)) for name, module in layers])
    if target.name == "frozen":
        check_finite(layers)
    if target.group_size is not None:
        check_group_size(target.group_size)


def _is_done(module: nn.Module, target: Target) -> bool:
    """Return whether a layer of the class that it is to become is what is asked for."""
    if target.group_size is not None:
        return False
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == groups_after(module, target)
    number = target.kind.number
    return not number or getattr(module, number, None) == target.number


def _note(module: nn.Module, target: Target, after: type[nn.Module]) -> str:
    if target.group_size is not None:
        return f"in groups of {target.group_size} processes"
    if issubclass(after, nn.GroupNorm):
        return sizes_note(module, target, after)
    number = target.kind.number
    return f"{number} {target.number}" if after is base_class(type(module)) and number else ""
