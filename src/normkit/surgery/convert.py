"""One kind of batch normalization becomes another, in a model that goes on with its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normkit.errors import OptionError, explain
from normkit.handle import Changed, Handle, Left, Step, run
from normkit.nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchRenorm1d,
    BatchRenorm2d,
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    FrozenBatchNorm2d,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    SyncBatchNorm,
)
from normkit.nn.held import holding, is_held, plain, remembers
from normkit.surgery.places import added, check_model, turn, walk, why_not_turn

__all__ = ["convert"]

To = str | tuple[str, int]

# What each kind is called for inputs with 1, 2 or 3 axes of space (0 for any number).
KINDS: dict[str, dict[int, type[nn.Module]]] = {
    "batch": {1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d},
    "sync": dict.fromkeys((0, 1, 2, 3), SyncBatchNorm),
    "ghost": {1: GhostBatchNorm1d, 2: GhostBatchNorm2d},
    "renorm": {1: BatchRenorm1d, 2: BatchRenorm2d},
    "domain": {1: DomainBatchNorm1d, 2: DomainBatchNorm2d},
    "frozen": {2: FrozenBatchNorm2d},
}
# Those with a number, and what the layer calls it.
NUMBERS = {"ghost": "ghost_size", "domain": "domains"}
# What a layer has of its own kind.
OWN = {"ghost_size", "process_group", "r_max", "d_max", "_last"}
# Exact types that can be converted, and their axes.
FROM: dict[type[nn.Module], int] = {
    nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3, nn.SyncBatchNorm: 0, SyncBatchNorm: 0,
    **{cls: axes for kind in ("batch", "ghost", "renorm") for axes, cls in KINDS[kind].items()},
}  # fmt: skip


class _Change(NamedTuple):
    """What becomes of a layer: its class, its own attributes, and its tensors if others."""

    cls: type[nn.Module]
    own: dict[str, Any]
    parameters: dict[str, Any] | None = None
    buffers: dict[str, Any] | None = None


def convert(model: nn.Module, to: To) -> Handle:
    """Turn every batch normalization in ``model`` into another kind of it, in place.

    =================  ==========================================================
    ``to``             each layer becomes a
    =================  ==========================================================
    ``"batch"``        :class:`normkit.BatchNorm2d`
    ``"sync"``         :class:`normkit.SyncBatchNorm`, over all processes
    ``("ghost", 32)``  :class:`normkit.GhostBatchNorm2d` of 32 samples
    ``"renorm"``       :class:`normkit.BatchRenorm2d`, with the paper's limits
    ``("domain", 3)``  :class:`normkit.DomainBatchNorm2d`; each bank starts alike
    ``"frozen"``       :class:`normkit.FrozenBatchNorm2d`
    =================  ==========================================================

    or its 1d or 3d form. Each layer stays the same object, with γ and β, its averages, momentum,
    activation and hooks, and only its class and what is the new kind's own change. So optimizers,
    other references and a layer that stands in several places, or is itself the model, stay
    right, and a layer that was frozen (:func:`normkit.freeze`) stays frozen. To ``"frozen"`` γ and
    β become buffers, which no optimizer moves; to ``("domain", D)`` they are shared. The momentum
    stays too: for ``"renorm"`` the paper has 0.01.

    Args:
        model: any module. Wrap it in ``DistributedDataParallel`` afterwards.
        to: as above.

    Returns:
        A handle: ``print`` it for what was converted and what was left and why. ``.undo()`` puts
        back each layer's kind, and keeps weights and averages as they are by then; only those of
        domains or of a frozen layer, which have another shape or place, become what they were.

    Raises:
        TypeMismatchError: ``model`` is no module, or scripted.
        OptionError: there is no such kind. Nothing has been changed then.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> handle = convert(model, ("ghost", 16))
    >>> print(handle)
    convert: 1 changed, 0 left
      1  nn.BatchNorm2d → normkit.GhostBatchNorm2d
    >>> model[1].ghost_size
    16
    >>> handle.undo()
    >>> type(model[1]) is nn.BatchNorm2d
    True
    """
    check_model(model, "convert changes the layers")
    kind, number = _parse(to)
    changed: list[Changed] = []
    left: list[Left] = []
    steps: list[Step] = []
    for name, module in walk(model):
        if not isinstance(module, _BatchNorm):
            continue
        before = plain(type(module))
        after = KINDS[kind].get(FROM.get(before, -1))
        if after is before and getattr(module, NUMBERS.get(kind, ""), None) == number:
            continue
        why = _why_left(module, kind, after)
        if why is not None or after is None:
            left.append(Left(name, before, why or "there is no such layer"))
            continue
        steps.append(_turning(name, module, _change(module, kind, number, after)))
        note = f"{NUMBERS[kind]} {number}" if after is before else ""
        changed.append(Changed(name, before, after, note=note))
    run(steps)
    return Handle("convert", changed, left, steps)


def _parse(to: To) -> tuple[str, int | None]:
    kind, number = to if isinstance(to, tuple) and len(to) == 2 else (to, None)
    known = isinstance(kind, str) and kind in KINDS
    fits = number is None or (type(number) is int and number >= 1)
    if not known or not fits or (kind in NUMBERS) is (number is None):
        raise OptionError(
            explain(
                'to is "batch", "sync", ("ghost", samples), "renorm", ("domain", domains) or '
                '"frozen"',
                repr(to),
                'for example convert(model, ("ghost", 32))',
            )
        )
    return str(kind), number


def _why_left(module: _BatchNorm, kind: str, after: type | None) -> str | None:
    before = plain(type(module))
    if before in KINDS["domain"].values():
        return "has statistics for each domain, which no other kind has"
    if before not in FROM:
        lazy = isinstance(module, nn.modules.lazy.LazyModuleMixin)
        return "lazy, and has met no input" if lazy else "a subclass, which may do otherwise"
    if after is None:
        shown = f"of {FROM[before]} axes of space" if FROM[before] else "of any number of axes"
        return f"there is no {kind} form for inputs {shown}"
    if kind == "frozen" and not remembers(module):
        return "remembers no statistics"
    return why_not_turn(module, after)


def _change(module: _BatchNorm, kind: str, number: int | None, after: type[nn.Module]) -> _Change:
    """What of ``module`` a layer made as ``after`` has otherwise."""
    if kind == "frozen":
        frozen = FrozenBatchNorm2d.from_batch_norm(module)
        return _Change(after, {}, frozen._parameters, frozen._buffers)
    make: Callable[..., nn.Module] = after
    made = make(1, *(() if number is None else (number,)), device="meta")
    plainly = KINDS["batch"][1](1, device="meta")
    own = {key: value for key, value in vars(made).items() if key not in vars(plainly)}
    if kind == "sync":
        own["process_group"] = getattr(module, "process_group", None)
    if kind != "domain" or number is None:
        return _Change(after, own)
    rows = {
        name: None if b is None else b.expand(number, *b.shape).clone()
        for name, b in module._buffers.items()
    }
    return _Change(after, own, None, rows)


def _turning(name: str, module: nn.Module, change: _Change) -> Step:
    before = plain(type(module))
    old = {key: vars(module)[key] for key in OWN & vars(module).keys()}
    tables = {
        key: (vars(module)[key], table)
        for key, table in (("_parameters", change.parameters), ("_buffers", change.buffers))
        if table is not None
    }

    def become(cls: type, gone: Iterable[str], come: dict[str, Any], which: int) -> None:
        turn(module, holding(cls) if is_held(module) else cls)  # first, for undo goes by it
        for key in gone:
            vars(module).pop(key, None)
        vars(module).update(come)
        vars(module).update({key: pair[which] for key, pair in tables.items()})

    def undo() -> Left | None:
        now = plain(type(module))
        if now is before and now is not change.cls:
            return None
        if now is not change.cls:
            return Left(name, now, "its class was changed again")
        become(before, {*change.own, *added(now, before)}, old, 0)
        return None

    return Step(lambda: become(change.cls, old, change.own, 1), undo)
