"""Replace ``torch.nn``'s normalization layers by their namesakes of this package, in place."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from normkit.core.activations import has_hooks
from normkit.core.formula import Spec
from normkit.core.pools import PER_CHANNEL, Pool
from normkit.handle import Changed, Handle, Skipped, Step, run
from normkit.kernels.compiled import Compiled
from normkit.kernels.dispatch import usual_way
from normkit.kernels.traced import Traced
from normkit.nn.freezing import base_class, frozen_class, is_frozen
from normkit.nn.layer import Layer
from normkit.nn.stats_spec import in_graph, why_unknown
from normkit.statistics.check_arguments import check_model
from normkit.surgery.modules import (
    added_names,
    is_opaque,
    set_class,
    walk,
    why_not_convertible,
    why_opaque,
    why_subclass,
)
from normkit.surgery.sequential import LAYERS, can_fuse, fusing_class, pairs

__all__ = ["accelerate"]

# Exact type to exact type. SyncBatchNorm is missing: ours does not subclass its namesake.
NAMESAKES: dict[type, type] = {
    namesake: layer
    for layer in LAYERS
    if (namesake := getattr(nn, layer.__name__, None)) is not None and issubclass(layer, namesake)
}
FAMILY = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def accelerate(model: nn.Module) -> Handle:
    """Replace every ``torch.nn`` normalization layer in ``model`` by its namesake here, in place.

    Each layer stays the same object, with its parameters, buffers, hooks and name; only its
    class changes. So optimizers, other references, ``state_dict`` and shared layers stay valid,
    and the model itself may be such a layer. Where an ``nn.Sequential`` runs a layer and then
    ReLU, ReLU6, LeakyReLU, SiLU or GELU, both are computed in one operation; the modules keep their
    places, and either one called alone behaves as before. Outputs, gradients and buffers agree
    up to rounding.

    Skipped and listed: subclasses defined elsewhere (parametrized layers are such),
    ``torch.nn.SyncBatchNorm``, scripted modules and those of ``torch.ao``.

    Args:
        model: any module; it may be wrapped, compiled or untrained.

    Returns:
        A handle: ``print`` shows which layers were changed and which skipped, and why;
        ``.changed`` and ``.skipped`` hold the rows; ``.undo()`` restores the former classes and
        keeps the present weights, buffers and hooks.

    Raises:
        TypeMismatchError: ``model`` is no module, or is scripted; it is unchanged.

    Note:
        PyTorch's own tools (export, ``torch.jit``, ``torch.ao.quantization``,
        ``torch.fx.experimental.optimization``) give what they give for ``torch.nn``'s layers.
        Others that look for its exact classes pass over the changed layers: use them before, or
        undo first.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.GroupNorm(2, 8))
    >>> handle = accelerate(model)
    >>> print(handle)
    accelerate: 2 changed, 1 fused, 0 skipped
      1  nn.BatchNorm2d → normkit.BatchNorm2d, fused with 2
      3  nn.GroupNorm → normkit.GroupNorm
      BatchNorm2d, GroupNorm computed on cpu in float32 by ...
    >>> handle.undo()
    >>> type(model[1]) is nn.BatchNorm2d
    True
    """
    check_model(model, "accelerate")
    changed: dict[int, Changed] = {}
    skipped: list[Skipped] = []
    steps: list[Step] = []
    modules = list(walk(model))
    for name, module in modules:
        why = _why_skipped(module)
        if why is not None:
            skipped.append(Skipped(name, type(module), why))
        elif (after := NAMESAKES.get(base_class(type(module)))) is not None:
            changed[id(module)] = Changed(name, base_class(type(module)), after)
            steps.append(_class_change(name, module, after))
    for name, module in modules:
        if not isinstance(module, nn.Sequential) or not can_fuse(type(module)):
            continue
        fusible = [
            p
            for p in pairs(module)
            if id(p.layer) in changed or base_class(type(p.layer)) in LAYERS
        ]
        if fusible:
            steps.append(_class_change(name, module, fusing_class(type(module))))
        for key, layer, act_key, act in fusible:
            act_name = f"{name}.{act_key}".lstrip(".")
            # A lazy layer removes its own hook at its first input.
            if has_hooks(act) or (has_hooks(layer) and not isinstance(layer, LazyModuleMixin)):
                why = "runs separately while it or the layer before has hooks"
                skipped.append(Skipped(act_name, type(act), why))
                continue
            cls = base_class(type(layer))
            row = changed.get(id(layer)) or Changed(f"{name}.{key}".lstrip("."), cls, cls)
            changed[id(layer)] = row._replace(fused=(*row.fused, act_name))
    notes = _computed_by([module for _, module in modules if id(module) in changed])
    run(steps)
    return Handle("accelerate", list(changed.values()), skipped, steps, notes)


def _computed_by(layers: list[nn.Module]) -> list[str]:
    """Describe what computes the layers on each device and in each type, and why nothing faster."""
    kinds: dict[str, dict[str, None]] = {}
    for layer in layers:
        where = next((t for t in (*layer.parameters(), *layer.buffers())
                      if t.is_floating_point()), torch.empty(0))  # fmt: skip
        rows = isinstance(layer, (nn.LayerNorm, nn.RMSNorm))
        *lines, used = usual_way(where.device, where.dtype, _spec(layer), rank=2 if rows else 4)
        # Of a call as it usually is, which no tool looks into.
        refusals = [line for line in lines if not line.startswith((Compiled.name, Traced.name))]
        why = f" ({'; '.join(refusals)})" if refusals else ""
        dtype = str(where.dtype).removeprefix("torch.")
        line = f"on {where.device} in {dtype} by {used.removesuffix(': used')}{why}"
        kinds.setdefault(line, {})[base_class(type(layer)).__name__] = None
    return [f"{', '.join(names)} computed {line}" for line, names in kinds.items()]


def _spec(layer: nn.Module) -> Spec:
    """Return what a layer computes on an input of two channels."""
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        return Spec(Pool("group", 2), 1e-5)
    if isinstance(layer, (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
        return Spec(Pool("group", 1), 1e-5, centred=not isinstance(layer, nn.RMSNorm))
    return Spec(PER_CHANNEL, 1e-5)


def _why_skipped(module: nn.Module) -> str | None:
    """Return why ``module`` is not replaced although a reader might expect it; else None."""
    cls = base_class(type(module))
    if is_opaque(module):
        return why_opaque(module)
    if not isinstance(module, FAMILY) or isinstance(module, Layer):
        return why_unknown(module) if in_graph(module) else None
    if cls is nn.SyncBatchNorm:
        return "use normkit.SyncBatchNorm.convert_sync_batchnorm"
    after = NAMESAKES.get(cls)
    if after is None:
        return why_subclass(module)
    return why_not_convertible(module, after)


def _class_change(name: str, module: nn.Module, after: type) -> Step:
    """Return the step that gives ``module`` the class ``after``; a frozen layer stays frozen."""
    before = base_class(type(module))

    def do() -> None:
        set_class(module, frozen_class(after) if is_frozen(module) else after)

    def undo() -> Skipped | None:
        ours: type | None = after
        theirs: type | None = before
        cls = base_class(type(module))
        if cls is before:
            return None
        if cls is getattr(after, "cls_to_become", None):  # lazy, and initialized since
            ours = after.cls_to_become  # type: ignore[attr-defined]
            theirs = before.cls_to_become  # type: ignore[attr-defined]
        if cls is not ours or theirs is None:
            return Skipped(name, cls, "its class was changed again")
        for key in added_names(ours, theirs) & vars(module).keys():
            del vars(module)[key]
        set_class(module, frozen_class(theirs) if is_frozen(module) else theirs)
        return None

    return Step(do, undo)
