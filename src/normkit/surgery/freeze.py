"""Freeze and unfreeze running statistics, γ and β of normalization layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.nn.parameter import Parameter

from normkit.errors import OptionError, message
from normkit.handle import Changed, Handle, Skipped, Step, run, warn_skipped
from normkit.nn.affine import AFFINE, sources
from normkit.nn.freezing import (
    FrozenMixin,
    base_class,
    freeze_layer,
    is_constant,
    is_frozen,
    unfreeze_layer,
)
from normkit.nn.stats_spec import stats_spec
from normkit.statistics.check_arguments import check_model
from normkit.statistics.layers.train_overrides import KEPT, kept_in_evaluation
from normkit.surgery.freezable import UNMOVED, caveat, check_finite, why_not_frozen
from normkit.surgery.modules import PARALLEL, in_parallel, walk
from normkit.surgery.trainable import thaw, why_not_trainable

__all__ = ["freeze", "unfreeze"]


def freeze(model: nn.Module, *, statistics: bool = True, affine: bool = True) -> Handle:
    """Freeze the running statistics and γ and β of ``model``'s normalization layers, in place.

    A frozen layer normalizes with its running mean and variance in training as in evaluation,
    and ``model.train()`` does not change that. It applies to layers that keep running
    statistics as :func:`normkit.nn.stats_spec.stats_spec` knows it: those of ``torch.nn``, of this
    package, their subclasses that do not override ``forward``, widespread ones of other libraries,
    and those registered. γ and β that are computed from other parameters, as by pruning, are frozen
    with those.

    Skipped and listed: other subclasses, parametrized, lazy and scripted layers, those of
    ``torch.ao`` and of exported graphs; γ and β within a flat parameter of FSDP. Where no layer
    could be frozen, a warning says so.

    Each layer stays the same object, with its parameters, buffers, hooks and name; only its
    class changes, to a subclass of the same name (:mod:`normkit.nn.freezing`). So optimizers, other
    references, ``state_dict`` and shared layers stay valid, the model itself may be such a
    layer, and copies and pickles stay frozen.

    Args:
        model: any module.
        statistics: freeze running mean and variance.
        affine: freeze γ and β (``requires_grad`` off). Gradients accumulated in them are dropped,
            so that no optimizer applies them later.

    Returns:
        A handle: ``print`` shows which layers were frozen and which skipped, and why.
        ``.undo()`` puts each layer into the mode last requested by ``train()`` and restores each
        ``requires_grad``.

    Raises:
        TypeMismatchError: ``model`` is no module, or is scripted.
        StatisticsError: a layer's statistics are not finite.
        OptionError: both ``statistics`` and ``affine`` are false. The model is unchanged in all
            three cases.

    Note:
        ``DistributedDataParallel`` reads ``requires_grad`` in its constructor: freeze γ and β
        before, or pass ``find_unused_parameters=True``, or its second step raises. Statistics may
        be frozen at any time. A scripted model does not keep the subclass: its own ``train()``
        puts all its layers into training mode.

    Source: Wu & Johnson 2021, arXiv 2105.07576, section 4.3 (FrozenBN late in training).

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout())
    >>> _ = model(torch.randn(4, 3, 8, 8))
    >>> handle = freeze(model)
    >>> print(handle)
    freeze: 1 changed, 0 skipped
      1  nn.BatchNorm2d: statistics frozen, γ and β frozen
    >>> [m.training for m in model.train()]
    [True, False, True, True]
    >>> handle.undo()
    >>> [m.training for m in model]
    [True, True, True, True]
    """
    return _switch("freeze", model, statistics, affine)


def unfreeze(model: nn.Module, *, statistics: bool = True, affine: bool = True) -> Handle:
    """Undo :func:`freeze` without its handle, for example in a copied or loaded model.

    Frozen layers go into the mode last requested by ``train()``. γ and β of all layers with
    running statistics become trainable, however they were frozen. Layers that are constant by
    construction, such as :class:`normkit.FrozenBatchNorm2d` and those of torchvision, detectron2
    and transformers, become :class:`normkit.BatchNorm2d`, with new parameters γ and β, which an
    optimizer has to be given.

    See :func:`freeze` for arguments and errors; ``.undo()`` of the handle freezes again.

    >>> layer = nn.BatchNorm2d(3)
    >>> _ = freeze(layer)
    >>> unfreeze(layer)
    unfreeze: 1 changed, 0 skipped
      (the model)  nn.BatchNorm2d: statistics updating, γ and β trainable
    >>> layer.training, type(layer) is nn.BatchNorm2d
    (True, True)
    """
    return _switch("unfreeze", model, statistics, affine)


def _switch(verb: str, model: nn.Module, statistics: bool, affine: bool) -> Handle:
    check_model(model, verb)
    if not (statistics or affine):
        raise OptionError(
            message(
                "statistics or affine, or both, to be true",
                "statistics=False, affine=False",
                f"call {verb}(model), or omit one of the two",
            )
        )
    freezing = verb == "freeze"
    layers: list[tuple[str, nn.Module]] = []
    constant: list[tuple[str, nn.Module]] = []
    skipped: list[Skipped] = []
    parallel = in_parallel(model)
    for name, module in walk(model):
        why = why_not_frozen(module, statistics, freezing)
        if not freezing and is_constant(module):
            why = PARALLEL if id(module) in parallel else why_not_trainable(module)
            if why is None:
                constant.append((name, module))
                continue
        if why is not None:
            skipped.append(Skipped(name, type(module), why))
        elif stats_spec(module) is not None:
            layers.append((name, module))
    if freezing and statistics:
        check_finite(layers)
    changed: list[Changed] = []
    steps: list[Step] = []
    in_evaluation = frozenset() if freezing else kept_in_evaluation(model)
    for name, module in layers:
        notes: list[str] = []
        if statistics and is_frozen(module) is not freezing:
            steps.append(_statistics_change(name, module, freezing))
            updating = KEPT if id(module) in in_evaluation else "statistics updating"
            notes.append("statistics frozen" + caveat(module) if freezing else updating)
        if affine and (which := _affine(module, freezing)):
            steps += [_affine_change(p, freezing) for ps in which.values() for p in ps]
            notes.append(" and ".join(which) + (" frozen" if freezing else " trainable"))
        if affine and (lost := _lost(module)):
            why = (
                f"{lost} computed outside the layer, as by FSDP: {verb} before the model is wrapped"
            )
            skipped.append(Skipped(name, base_class(type(module)), why))
        if notes:
            cls = base_class(type(module))
            changed.append(Changed(name, cls, cls, note=", ".join(notes)))
    for name, module in constant:
        row, step = thaw(name, module, statistics, affine)
        changed.append(row)
        steps.append(step)
    run(steps)
    if freezing and not layers:
        missed = [row for row in skipped if row.why not in UNMOVED]
        warn_skipped("freeze changed nothing, and", missed, stacklevel=3)
    return Handle(verb, changed, skipped, steps)


def _affine(module: nn.Module, freezing: bool) -> dict[str, list[Parameter]]:
    """Return those of γ and β whose ``requires_grad`` changes, with their parameters."""
    named = {
        label: [
            p
            for p in sources(module, name) or []
            if p.requires_grad is freezing and p.is_floating_point()
        ]
        for label, name in AFFINE.items()
    }
    return {label: parameters for label, parameters in named.items() if parameters}


def _lost(module: nn.Module) -> str:
    """Name those of γ and β whose parameters are not to be found in the layer."""
    return " and ".join(label for label, name in AFFINE.items() if sources(module, name) is None)


def _statistics_change(name: str, module: nn.Module, freezing: bool) -> Step:
    def undo(reverse: Callable[[nn.Module], None], frozen: bool) -> Skipped | None:
        if is_frozen(module) is not frozen:
            changed = isinstance(module, FrozenMixin) is frozen  # a class was put over it
            return Skipped(name, type(module), "its class was changed again") if changed else None
        reverse(module)
        return None

    if freezing:
        return Step(partial(freeze_layer, module), partial(undo, unfreeze_layer, True))
    return Step(partial(unfreeze_layer, module), partial(undo, freeze_layer, False))


def _affine_change(parameter: Parameter, freezing: bool) -> Step:
    def do() -> None:
        parameter.requires_grad_(not freezing)
        if freezing:
            parameter.grad = None

    def undo() -> None:
        parameter.requires_grad_(freezing)

    return Step(do, undo)
