"""Layers of this package back to exactly ``torch.nn``'s classes, for tools that know no others."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from normkit.handle import Changed, Skipped, Step
from normkit.nn import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    DomainBatchNorm3d,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    SyncBatchNorm,
)
from normkit.nn.foreign import original_class
from normkit.nn.freezing import base_class, is_frozen
from normkit.nn.layer import Layer
from normkit.nn.namesakes import namesake
from normkit.nn.weightstandardization import WeightStandardized
from normkit.surgery.class_change import class_change
from normkit.surgery.conversion.activations import module_of, put_out, why_not_put_out
from normkit.surgery.conversion.calls import Calls
from normkit.surgery.conversion.layers import CONSTANT
from normkit.surgery.conversion.states import STATISTICS
from normkit.surgery.modules import added_names, is_opaque, walk, why_not_convertible, why_subclass
from normkit.surgery.new_state import NewState, state_change
from normkit.surgery.sequential import LAYERS, base_sequential

__all__ = ["plan"]


class StandIn(NamedTuple):
    """Class of ``torch.nn`` that evaluates as one here does, and how its training differs."""

    cls: type[nn.Module]
    note: str


# Attributes of instances alone, which classes here have no default of.
KIND_ONLY = ("domains", "share_affine", "ghost_size", "r_max", "d_max", "_average", "_domain")

_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_EVALUATION = "constant in evaluation mode alone, which it is in now"
_FAMILIES: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d), "training takes the whole batch"),
    ((BatchRenorm1d, BatchRenorm2d, BatchRenorm3d), "training does not correct the batch"),
    ((DomainBatchNorm1d, DomainBatchNorm2d, DomainBatchNorm3d), "of its one domain"),
    (CONSTANT, _EVALUATION),
)
_STAND_INS: dict[type, StandIn] = {
    SyncBatchNorm: StandIn(nn.SyncBatchNorm, "training across processes runs on GPUs alone"),
    **{
        cls: StandIn(plain, note)
        for classes, note in _FAMILIES
        for cls, plain in zip(classes, _BATCH, strict=True)
    },
}


def plan(model: nn.Module, calls: Calls) -> tuple[list[Changed], list[Skipped], list[Step]]:
    """Return rows and steps of the conversion of ``model`` to ``torch.nn``'s classes."""
    changed: list[Changed] = []
    skipped: list[Skipped] = []
    steps: list[Step] = []
    for name, module in walk(model):
        if is_opaque(module):
            continue
        cls = base_class(type(module))
        plain = base_sequential(cls)
        if plain is not cls:
            steps.append(state_change(name, module, NewState(plain, {})))
            continue
        after = _class_of(module, cls)
        if after is None:
            continue
        if isinstance(after, str) or (why := _why_not(model, module, after.cls, calls)):
            skipped.append(Skipped(name, cls, after if isinstance(after, str) else str(why)))
            continue
        row, new = _change(name, module, after)
        lazy = isinstance(module, LazyModuleMixin)  # and may be initialized before undo
        change = class_change(name, module, new.cls) if lazy else state_change(name, module, new)
        steps.append(change)
        if (act := _activation(module)) is not None:
            step, note = put_out(model, name, module, [act.train(module.training)])
            steps.append(step)
            row = row._replace(note="; ".join(filter(None, (row.note, note))))
        changed.append(row)
    return changed, skipped, steps


def _class_of(module: nn.Module, cls: type) -> StandIn | str | None:
    """Return what ``module`` becomes, why it cannot, or None if it is none of normkit's."""
    if not isinstance(module, Layer):
        if isinstance(module, WeightStandardized):
            return "standardizes its weight; its to_conv() returns the plain convolution"
        theirs = original_class(cls)
        if theirs is not cls or is_frozen(module):
            return StandIn(theirs, "")
        return None
    if cls not in LAYERS:
        return why_subclass(module)
    if (stand_in := _STAND_INS.get(cls)) is not None:
        domains = getattr(module, "domains", 1)
        if domains != 1:
            return f"has statistics for each of {domains} domains"
        shared = getattr(module, "share_affine", True)
        return stand_in if shared else "has a row of γ and β for its domain"
    plain = namesake(cls)
    return "torch.nn has no such layer" if plain is None else StandIn(plain, "")


def _why_not(model: nn.Module, module: nn.Module, after: type, calls: Calls) -> str | None:
    if calls.with_residual(module) and isinstance(module, Layer):
        return "called with a residual, which torch.nn's layers do not add"
    if getattr(module, "act", None) is not None and isinstance(module, Layer):
        if _activation(module) is None:
            return f"torch.nn has no module for its act={module.act!r}"
        if (why := why_not_put_out(model, module)) is not None:
            return why
    return why_not_convertible(module, after)


def _change(name: str, module: nn.Module, after: StandIn) -> tuple[Changed, NewState]:
    cls = base_class(type(module))
    notes = [after.note] if after.note else []
    ours = isinstance(module, Layer)
    removed = {*added_names(cls, after.cls), *KIND_ONLY} if ours else {"_stats_updated"}
    attributes: dict[str, Any] = {}
    parameters = buffers = None
    if cls in CONSTANT:
        attributes, parameters, buffers = _with_parameters(module)
    elif cls in _STAND_INS and getattr(module, "domains", None) == 1:
        buffers = _of_one_domain(module)
    average = getattr(module, "average", "exponential") if ours else "exponential"
    if average == "cumulative" and getattr(module, "momentum", None) != 0:
        attributes["momentum"] = None  # which means the same
    elif average != "exponential":
        notes.append(f"training averages exponentially and not {average}")
    frozen = None
    if is_frozen(module):
        notes.append(_EVALUATION)
        attributes["training"], frozen = False, False
        removed |= {"_requested_mode"}
    new = NewState(after.cls, attributes, parameters, buffers, frozenset(removed), frozen)
    return Changed(name, cls, after.cls, note="; ".join(dict.fromkeys(notes))), new


def _activation(module: nn.Module) -> nn.Module | None:
    """Return a module that applies the activation of a layer here; None if there is none."""
    act = module._act if isinstance(module, Layer) else None
    return None if act is None else module_of(act)


def _with_parameters(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return attributes, parameters and buffers of a constant layer as a batch normalization."""
    tensors: dict[str, Tensor | None] = dict(module._buffers)
    parameters = {
        name: nn.Parameter(tensors.pop(name), requires_grad=False)  # type: ignore[arg-type]
        for name in ("weight", "bias")
    }
    mean = tensors["running_mean"]
    assert mean is not None
    tensors["num_batches_tracked"] = torch.zeros((), dtype=torch.long, device=mean.device)
    missing = {"affine": True, "track_running_stats": True, "momentum": 0.1}
    attributes = {key: value for key, value in missing.items() if key not in vars(module)}
    return {**attributes, "training": False}, {**module._parameters, **parameters}, tensors


def _of_one_domain(module: nn.Module) -> dict[str, Any]:
    """Return the buffers of a layer whose statistics have a single row."""
    return {
        name: b[0] if b is not None and name in STATISTICS else b
        for name, b in module._buffers.items()
    }
