"""Replace ``torch.nn``'s normalization layers by their namesakes of this package, in place."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from normkit.core.activations import has_hooks
from normkit.core.formula import Spec
from normkit.core.pools import PER_CHANNEL, PER_POSITION, Pool
from normkit.handle import Changed, Handle, Skipped, Step, run
from normkit.kernels.compiled import Compiled
from normkit.kernels.dispatch import usual_way
from normkit.kernels.traced import Traced
from normkit.nn.freezing import base_class
from normkit.nn.groupnorm import GroupNorm
from normkit.nn.layer import Layer
from normkit.nn.norm_formula import RANKS
from normkit.nn.stats_spec import in_graph, why_unknown
from normkit.nn.zerocenteredrmsnorm import ZeroCenteredRMSNorm
from normkit.statistics.check_arguments import check_model
from normkit.surgery.class_change import class_change
from normkit.surgery.foreign import (
    computed_class,
    foreign_change,
    knows_foreign,
    why_not_foreign,
    why_unknown_norm,
)
from normkit.surgery.modules import is_opaque, walk, why_not_convertible, why_opaque, why_subclass
from normkit.surgery.sequential import LAYERS, can_fuse, fusing_class, pairs

__all__ = ["FAMILY", "accelerate"]

# Exact type to exact type. SyncBatchNorm is missing: ours does not subclass its namesake.
NAMESAKES: dict[type, type] = {
    namesake: layer
    for layer in LAYERS
    if (namesake := getattr(nn, layer.__name__, None)) is not None and issubclass(layer, namesake)
}
UNCENTRED = (nn.RMSNorm, ZeroCenteredRMSNorm)
FAMILY = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def accelerate(model: nn.Module) -> Handle:
    """Compute every normalization layer in ``model`` by the kernels of this package, in place.

    Each layer stays the same object, with its parameters, buffers, hooks and name; only its
    class changes. So optimizers, other references, ``state_dict`` and shared layers stay valid,
    and the model itself may be such a layer. Where an ``nn.Sequential`` runs a layer and then
    ReLU, ReLU6, LeakyReLU, SiLU or GELU, both are computed in one operation; the modules keep their
    places, and either one called alone behaves as before. Outputs, gradients and buffers agree
    up to rounding.

    Layers of timm, torchvision, transformers and others that are registered
    (:func:`normkit.nn.norm_spec.register_norm`), and subclasses of ``torch.nn``'s that do not
    override ``forward``, become a subclass of their own class, of the same name
    (:mod:`normkit.nn.foreign`), after their formula has been compared with their own ``forward``
    on small tensors. Their activation is computed with them.

    Skipped and listed: layers that are not known, that compute something no layer here does or
    whose version differs; parametrized layers, ``torch.nn.SyncBatchNorm``, scripted modules and
    those of ``torch.ao``.

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
        elif (foreign := foreign_change(name, module)) is not None:
            changed[id(module)] = foreign[0]
            steps.append(foreign[1])
        elif (after := NAMESAKES.get(base_class(type(module)))) is not None:
            changed[id(module)] = Changed(name, base_class(type(module)), after)
            steps.append(class_change(name, module, after))
    for name, module in modules:
        if not isinstance(module, nn.Sequential) or not can_fuse(type(module)):
            continue
        fusible = [p for p in pairs(module) if base_class(type(p.layer)) in {*LAYERS, *NAMESAKES}]
        if fusible:
            steps.append(class_change(name, module, fusing_class(type(module))))
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
        dtype = str(where.dtype).removeprefix("torch.")
        if isinstance(layer, Layer) and layer._is_composed():
            line = f"on {where.device} in {dtype} by PyTorch's operations"
            kinds.setdefault(line, {})[base_class(type(layer)).__name__] = None
            continue
        cls = computed_class(layer)
        rows = issubclass(cls, (nn.LayerNorm, *UNCENTRED)) and cls not in RANKS
        *lines, used = usual_way(where.device, where.dtype, _spec(cls), rank=2 if rows else 4)
        # Of a call as it usually is, which no tool looks into.
        refusals = [line for line in lines if not line.startswith((Compiled.name, Traced.name))]
        why = f" ({'; '.join(refusals)})" if refusals else ""
        line = f"on {where.device} in {dtype} by {used.removesuffix(': used')}{why}"
        kinds.setdefault(line, {})[base_class(type(layer)).__name__] = None
    return [f"{', '.join(names)} computed {line}" for line, names in kinds.items()]


def _spec(cls: type[nn.Module]) -> Spec:
    """Return what a layer of this class computes on an input of two channels."""
    if issubclass(cls, nn.modules.instancenorm._InstanceNorm):
        return Spec(Pool("group", 2), 1e-5)
    if issubclass(cls, (nn.GroupNorm, nn.LayerNorm, *UNCENTRED)):
        pool = PER_POSITION if cls in RANKS and cls is not GroupNorm else Pool("group", 1)
        return Spec(pool, 1e-5, centred=not issubclass(cls, UNCENTRED))
    return Spec(PER_CHANNEL, 1e-5)


def _why_skipped(module: nn.Module) -> str | None:
    """Return why ``module`` is not replaced although a reader might expect it; else None."""
    cls = base_class(type(module))
    if is_opaque(module):
        return why_opaque(module)
    if knows_foreign(module):
        return why_not_foreign(module)
    if not isinstance(module, FAMILY) or isinstance(module, Layer):
        return why_unknown(module) if in_graph(module) else why_unknown_norm(module)
    if cls is nn.SyncBatchNorm:
        return "use normkit.SyncBatchNorm.convert_sync_batchnorm"
    after = NAMESAKES.get(cls)
    if after is None:
        return why_subclass(module)
    return why_not_convertible(module, after)
