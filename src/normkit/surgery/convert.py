"""Convert batch normalization layers to another kind, in place, keeping their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from normkit.errors import OptionError, message
from normkit.handle import Changed, Handle, Skipped, Step, run, warn_skipped
from normkit.nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    DomainBatchNorm3d,
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    SyncBatchNorm,
)
from normkit.nn.affine import why_not_movable
from normkit.nn.freezing import base_class, is_constant
from normkit.nn.stats_spec import keeps_stats, stats_spec, why_unknown
from normkit.statistics.check_arguments import check_model
from normkit.surgery.freezable import check_finite
from normkit.surgery.modules import (
    is_opaque,
    walk,
    why_not_convertible,
    why_opaque,
    why_subclass,
)
from normkit.surgery.new_state import NewState, state_change
from normkit.surgery.trainable import (
    NEW_PARAMETERS,
    trainable_class,
    trainable_state,
    why_not_trainable,
)

__all__ = ["convert"]

To = str | tuple[str, int]

# The class of each kind by the number of spatial axes of its input (0: any number).
KINDS: dict[str, dict[int, type[nn.Module]]] = {
    "batch": {1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d},
    "sync": dict.fromkeys((0, 1, 2, 3), SyncBatchNorm),
    "ghost": {1: GhostBatchNorm1d, 2: GhostBatchNorm2d, 3: GhostBatchNorm3d},
    "renorm": {1: BatchRenorm1d, 2: BatchRenorm2d, 3: BatchRenorm3d},
    "domain": {1: DomainBatchNorm1d, 2: DomainBatchNorm2d, 3: DomainBatchNorm3d},
    "frozen": {1: FrozenBatchNorm1d, 2: FrozenBatchNorm2d, 3: FrozenBatchNorm3d},
}
# Kinds that take a number, and the attribute that holds it.
NUMBERS = {"ghost": "ghost_size", "domain": "domains"}
# Exact types that can be converted, with their number of spatial axes.
SPATIAL_AXES: dict[type[nn.Module], int] = {
    nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3, nn.SyncBatchNorm: 0, SyncBatchNorm: 0,
    **{cls: axes for kind in ("batch", "ghost", "renorm") for axes, cls in KINDS[kind].items()},
}  # fmt: skip


def convert(model: nn.Module, to: To) -> Handle:
    """Convert every batch normalization layer in ``model`` to another kind, in place.

    =================  ==========================================================
    ``to``             each layer becomes a
    =================  ==========================================================
    ``"batch"``        :class:`normkit.BatchNorm2d`
    ``"sync"``         :class:`normkit.SyncBatchNorm`, over all processes
    ``("ghost", 32)``  :class:`normkit.GhostBatchNorm2d` of 32 samples
    ``"renorm"``       :class:`normkit.BatchRenorm2d`, with the paper's limits
    ``("domain", 3)``  :class:`normkit.DomainBatchNorm2d`; all banks start equal
    ``"frozen"``       :class:`normkit.FrozenBatchNorm2d`
    =================  ==========================================================

    or its 1d or 3d form. Each layer stays the same object, with γ and β, running statistics,
    momentum, activation and hooks; only its class and the attributes of the new kind change. So
    optimizers, other references and shared layers stay valid, the model itself may be such a
    layer, and a layer frozen by :func:`normkit.freeze` stays frozen. ``"frozen"`` turns γ and β
    into buffers, which no optimizer updates; ``"batch"`` turns those of layers that are constant by
    construction, of any library, into new parameters, which an optimizer has to be given. The banks
    of ``("domain", D)`` share γ and β. Momentum is kept too, also by way of ``"frozen"``, where the
    count of batches starts anew: for ``"renorm"`` the paper uses 0.01.

    Skipped and listed: subclasses, parametrized, lazy and scripted layers, those of ``torch.ao``
    and of exported graphs, forms that do not exist; for ``"frozen"`` also γ and β that are sharded
    or computed from other parameters. Where no layer could be converted, a warning says so.

    Args:
        model: any module. Wrap it in ``DistributedDataParallel`` afterwards.
        to: the kind of layer, see the table.

    Returns:
        A handle: ``print`` shows which layers were converted and which skipped, and why.
        ``.undo()`` restores each layer's kind and keeps the present weights and statistics,
        except those of domains or of a frozen layer, which differ in shape or place: they return
        to their values before the conversion.

    Raises:
        TypeMismatchError: ``model`` is no module, or is scripted.
        OptionError: ``to`` names no such kind.
        StatisticsError: a layer's statistics are not finite, for ``"frozen"``. The model is
            unchanged in all three cases.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> handle = convert(model, ("ghost", 16))
    >>> print(handle)
    convert: 1 changed, 0 skipped
      1  nn.BatchNorm2d → normkit.GhostBatchNorm2d
    >>> model[1].ghost_size
    16
    >>> handle.undo()
    >>> type(model[1]) is nn.BatchNorm2d
    True
    """
    check_model(model, "convert")
    kind, number = _parse(to)
    changed: list[Changed] = []
    skipped: list[Skipped] = []
    steps: list[Step] = []
    frozen: list[tuple[str, nn.Module]] = []
    done = False
    for name, module in walk(model):
        before = base_class(type(module))
        if is_constant(module):
            if kind == "frozen" and before in KINDS["frozen"].values():
                done = True
                continue
            why = _why_still_constant(module, kind)
            if why is None:
                steps.append(state_change(name, module, trainable_state(module)))
                changed.append(Changed(name, before, trainable_class(module), note=NEW_PARAMETERS))
            else:
                skipped.append(Skipped(name, before, why))
            continue
        if not isinstance(module, _BatchNorm):
            other = why_opaque(module) if is_opaque(module) else _why_other(module)
            if other is not None:
                skipped.append(Skipped(name, before, other))
            continue
        after = KINDS[kind].get(SPATIAL_AXES.get(before, -1))
        if after is before and getattr(module, NUMBERS.get(kind, ""), None) == number:
            done = True
            continue
        why = _why_skipped(module, kind, after)
        if why is not None or after is None:
            skipped.append(Skipped(name, before, why or "there is no such layer"))
            continue
        if kind == "frozen":
            frozen.append((name, module))
        steps.append(state_change(name, module, _new_state(module, kind, number, after)))
        note = f"{NUMBERS[kind]} {number}" if after is before else ""
        changed.append(Changed(name, before, after, note=note))
    check_finite(frozen)
    run(steps)
    if not (changed or done):
        warn_skipped("convert changed nothing, and", skipped)
    return Handle("convert", changed, skipped, steps)


def _parse(to: To) -> tuple[str, int | None]:
    kind, number = to if isinstance(to, tuple) and len(to) == 2 else (to, None)
    known = isinstance(kind, str) and kind in KINDS
    fits = number is None or (type(number) is int and number >= 1)
    if not known or not fits or (kind in NUMBERS) is (number is None):
        raise OptionError(
            message(
                'one of "batch", "sync", ("ghost", samples), "renorm", ("domain", domains) and '
                '"frozen"',
                f"to={to!r}",
                'pass e.g. to=("ghost", 32)',
            )
        )
    return str(kind), number


def _why_still_constant(module: nn.Module, kind: str) -> str | None:
    """Return why a layer that is constant by construction is not made to learn; None if it is."""
    if kind == "frozen":
        return "already constant"
    if kind != "batch":
        return 'constant by construction: convert it to "batch" first'
    return why_not_trainable(module)


def _why_other(module: nn.Module) -> str | None:
    """Return why another batch normalization than ``torch.nn``'s and ours is not converted."""
    if stats_spec(module) is not None and not isinstance(module, _NormBase):
        return "neither torch.nn's nor normkit's"
    return None if isinstance(module, _NormBase) else why_unknown(module)


def _why_skipped(module: _BatchNorm, kind: str, after: type | None) -> str | None:
    before = base_class(type(module))
    if before in KINDS["domain"].values():
        return "has statistics for each domain, which other kinds cannot hold"
    if before not in SPATIAL_AXES:
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            return "lazy and not yet initialized"
        return why_subclass(module)
    if after is None:
        axes = SPATIAL_AXES[before] or "any number of"
        return f"there is no {kind} form for inputs of {axes} spatial axes"
    if kind == "frozen" and not keeps_stats(module):
        return "has no running statistics"
    if kind == "frozen" and (why := why_not_movable(module)) is not None:
        return why
    return why_not_convertible(module, after)


def _new_state(
    module: _BatchNorm, kind: str, number: int | None, after: type[nn.Module]
) -> NewState:
    """Return the state of ``module`` once its class is ``after``."""
    if kind == "frozen":
        constant: Any = after
        frozen = constant.from_batch_norm(module)
        return NewState(after, {}, frozen._parameters, frozen._buffers)
    factory: Callable[..., nn.Module] = after
    example = factory(1, *(() if number is None else (number,)), device="meta")
    common = vars(KINDS["batch"][1](1, device="meta"))
    attributes = {key: value for key, value in vars(example).items() if key not in common}
    if kind == "sync":
        attributes["process_group"] = getattr(module, "process_group", None)
    if kind != "domain" or number is None:
        return NewState(after, attributes)
    banks = {
        name: None if b is None else b.expand(number, *b.shape).clone()
        for name, b in module._buffers.items()
    }
    return NewState(after, attributes, None, banks)
