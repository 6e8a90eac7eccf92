"""``torch.nn``'s normalization layers become their namesakes here, in place."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from normkit.handle import Changed, Handle, Left, Step, run
from normkit.nn.held import holding, is_held, plain
from normkit.nn.layer import Layer
from normkit.surgery.places import added, check_model, closed, turn, walk, why_not_turn
from normkit.surgery.sequential import LAYERS, can_fuse, fusing, pairs, watched

__all__ = ["accelerate"]

# Exact type to exact type; a SyncBatchNorm is no subclass of its namesake, so it cannot turn.
NAMESAKES: dict[type, type] = {
    theirs: ours
    for ours in LAYERS
    if (theirs := getattr(nn, ours.__name__, None)) is not None and issubclass(ours, theirs)
}
FAMILY = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def accelerate(model: nn.Module) -> Handle:
    """Turn every normalization layer of ``torch.nn`` in ``model`` into its namesake here.

    In place and without a copy: each layer stays the same object, with its parameters, buffers,
    hooks and name, and only its class changes. So optimizers, other references, ``state_dict``
    and a layer that stands in several places, or is itself the model, stay right. Where an
    ``nn.Sequential`` runs a layer and then ReLU, LeakyReLU, SiLU or GELU, both are computed in
    one; the modules stay in their places, and one called by itself does what it did. Outputs,
    gradients and buffers are the same but for rounding.

    Left alone and named: subclasses of others (parametrized layers are such),
    ``torch.nn.SyncBatchNorm``, scripted modules and those of ``torch.ao``.

    Args:
        model: any module, also one that is wrapped, compiled or not yet trained.

    Returns:
        A handle: ``print`` it for a table of what was changed and what was left and why;
        ``.changed`` and ``.left`` hold the rows; ``.undo()`` puts back the classes that were and
        keeps weights, buffers and hooks as they are by then.

    Raises:
        TypeMismatchError: ``model`` is no module, or scripted. Nothing has been changed then.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.GroupNorm(2, 8))
    >>> handle = accelerate(model)
    >>> print(handle)
    accelerate: 2 changed, 1 fused, 0 left
      1  nn.BatchNorm2d → normkit.BatchNorm2d + 2
      3  nn.GroupNorm → normkit.GroupNorm
    >>> handle.undo()
    >>> type(model[1]) is nn.BatchNorm2d
    True
    """
    check_model(model, "accelerate changes the layers")
    layers: dict[int, Changed] = {}
    left: list[Left] = []
    steps: list[Step] = []
    modules = list(walk(model))
    for name, module in modules:
        why = _why_left(module)
        if why is not None:
            left.append(Left(name, type(module), why))
        elif (after := NAMESAKES.get(plain(type(module)))) is not None:
            layers[id(module)] = Changed(name, plain(type(module)), after)
            steps.append(_turning(name, module, after))
    for name, module in modules:
        if not isinstance(module, nn.Sequential) or not can_fuse(type(module)):
            continue
        found = [
            p for p in pairs(module) if id(p.layer) in layers or plain(type(p.layer)) in LAYERS
        ]
        if found:
            steps.append(_turning(name, module, fusing(type(module))))
        for key, layer, act_key, act in found:
            place = f"{name}.{act_key}".lstrip(".")
            # A lazy layer's own hook goes with its first input.
            if watched(act) or (watched(layer) and not isinstance(layer, LazyModuleMixin)):
                why = "runs by itself while it or the layer before has hooks"
                left.append(Left(place, type(act), why))
                continue
            cls = plain(type(layer))
            row = layers.get(id(layer)) or Changed(f"{name}.{key}".lstrip("."), cls, cls)
            layers[id(layer)] = row._replace(fused=(*row.fused, place))
    run(steps)
    return Handle("accelerate", list(layers.values()), left, steps)


def _why_left(module: nn.Module) -> str | None:
    """Why ``module`` cannot turn although it might be expected to; None where nothing is to say."""
    cls = plain(type(module))
    if closed(module):
        return "scripted" if isinstance(module, torch.jit.ScriptModule) else "torch.ao's own"
    if not isinstance(module, FAMILY) or isinstance(module, Layer):
        return None
    if cls is nn.SyncBatchNorm:
        return "use normkit.SyncBatchNorm.convert_sync_batchnorm"
    after = NAMESAKES.get(cls)
    if after is None:
        return "a subclass, which may do otherwise"
    return why_not_turn(module, after)


def _turning(name: str, module: nn.Module, after: type) -> Step:
    """Give ``module`` the class ``after``, and later the one it had; held or not, it stays so."""
    before = plain(type(module))

    def do() -> None:
        turn(module, holding(after) if is_held(module) else after)

    def undo() -> Left | None:
        now: tuple[type | None, type | None] = (after, before)
        cls = plain(type(module))
        if cls is before:
            return None
        if cls is getattr(after, "cls_to_become", None):  # lazy, and has met its input
            now = (after.cls_to_become, before.cls_to_become)  # type: ignore[attr-defined]
        ours, theirs = now
        if cls is not ours or theirs is None:
            return Left(name, cls, "its class was changed again")
        for key in added(ours, theirs) & vars(module).keys():
            del vars(module)[key]
        turn(module, holding(theirs) if is_held(module) else theirs)
        return None

    return Step(do, undo)
