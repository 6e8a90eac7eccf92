"""Holding the statistics and γ and β of trained layers still, and letting them go again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import Parameter
from torch.nn.utils.parametrize import is_parametrized

from normkit.errors import OptionError, StatisticsError, explain
from normkit.handle import Changed, Handle, Left, Step, run
from normkit.nn.held import Held, can_hold, hold, is_constant, is_held, plain, release, remembers
from normkit.surgery.places import check_model, closed, walk

__all__ = ["freeze", "unfreeze"]


def freeze(model: nn.Module, *, statistics: bool = True, affine: bool = True) -> Handle:
    """Hold what ``model``'s normalization layers remember, and their γ and β, still; in place.

    From then on a frozen layer normalizes with its remembered mean and variance in training as
    in evaluation, and ``model.train()`` does not change that: population statistics in training,
    once those of the batch have done their work. Layers of ``torch.nn``, of this package and
    their subclasses, if they have ``running_mean`` and ``running_var``.

    In place and without a copy: each layer stays the same object, with its parameters, buffers,
    hooks and name, and only its class changes, to a subclass of the same name
    (:mod:`normkit.nn.held`). So optimizers, other references, ``state_dict`` and a layer that
    stands in several places, or is itself the model, stay right; copies and pickles stay frozen.

    Args:
        model: any module.
        statistics: hold mean and variance.
        affine: let γ and β learn no more (``requires_grad`` off). Gradients that wait in them
            are dropped, so that no optimizer applies them later.

    Returns:
        A handle: ``print`` it for a table of what was frozen and what was left and why.
        ``.undo()`` puts each layer into the mode it would be in and each ``requires_grad`` to
        what it was.

    Raises:
        TypeMismatchError: ``model`` is no module, or scripted.
        StatisticsError: a layer's statistics are not finite.
        OptionError: neither statistics nor affine. Nothing has been changed in any of the cases.

    Note:
        ``DistributedDataParallel`` takes note of ``requires_grad`` when it is made: freeze γ and
        β before, or make it with ``find_unused_parameters=True``, or it raises in the second
        step. Statistics may be frozen at any time. A scripted model knows no classes of ours:
        its own ``train()`` sets all its layers training.

    Source: Wu & Johnson 2021, arXiv 2105.07576, section 4.3 (FrozenBN late in training).

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout())
    >>> _ = model(torch.randn(4, 3, 8, 8))
    >>> handle = freeze(model)
    >>> print(handle)
    freeze: 1 changed, 0 left
      1  nn.BatchNorm2d: statistics held, γ and β fixed
    >>> [m.training for m in model.train()]
    [True, False, True, True]
    >>> handle.undo()
    >>> [m.training for m in model]
    [True, True, True, True]
    """
    return _switch("freeze", model, statistics, affine)


def unfreeze(model: nn.Module, *, statistics: bool = True, affine: bool = True) -> Handle:
    """Undo :func:`freeze` without its handle: after loading, copying, or by another's hand.

    Held layers go into the mode that they would be in had they never been held, and γ and β of
    all layers that remember statistics learn again, whoever stopped them.

    Args and errors as :func:`freeze`; ``.undo()`` of the handle freezes what was unfrozen.

    >>> layer = nn.BatchNorm2d(3)
    >>> _ = freeze(layer)
    >>> unfreeze(layer)
    unfreeze: 1 changed, 0 left
      (the model)  nn.BatchNorm2d: statistics moving, γ and β learning
    >>> layer.training, type(layer) is nn.BatchNorm2d
    (True, True)
    """
    return _switch("unfreeze", model, statistics, affine)


def _switch(verb: str, model: nn.Module, statistics: bool, affine: bool) -> Handle:
    check_model(model, f"{verb} changes the layers")
    if not (statistics or affine):
        raise OptionError(
            explain(
                f"{verb} is for statistics, for γ and β, or for both",
                "statistics=False, affine=False",
                f"call {verb}(model), or leave one of the two out",
            )
        )
    freezing = verb == "freeze"
    found: list[tuple[str, nn.Module]] = []
    left: list[Left] = []
    for name, module in walk(model):
        why = _why_left(module, statistics)
        if why is not None:
            left.append(Left(name, type(module), why))
        elif remembers(module):
            found.append((name, module))
    if freezing and statistics:
        _check_finite(found)
    changed: list[Changed] = []
    steps: list[Step] = []
    for name, module in found:
        notes: list[str] = []
        if statistics and is_held(module) is not freezing:
            steps.append(_holding(name, module, freezing))
            notes.append("statistics held" + _doubt(module) if freezing else "statistics moving")
        if affine and (which := _affine(module, freezing)):
            steps += [_learning(parameter, freezing) for parameter in which.values()]
            notes.append(" and ".join(which) + (" fixed" if freezing else " learning"))
        if notes:
            cls = plain(type(module))
            changed.append(Changed(name, cls, cls, note=", ".join(notes)))
    run(steps)
    return Handle(verb, changed, left, steps)


def _why_left(module: nn.Module, statistics: bool) -> str | None:
    """Why ``module`` cannot be frozen although it might be expected to; None if all is well."""
    if closed(module):
        return "scripted" if isinstance(module, torch.jit.ScriptModule) else "torch.ao's own"
    if isinstance(module, LazyModuleMixin) and isinstance(module, _NormBase):
        return "lazy, and has met no input yet"
    if isinstance(module, _NormBase) and not remembers(module):
        return "remembers no statistics"
    if is_constant(module):
        return "constant as it is"
    if not remembers(module):
        return None
    if not statistics and any(is_parametrized(module, name) for name in ("weight", "bias")):
        return "parametrized"
    if not statistics or is_held(module):
        return None
    if is_parametrized(module):
        return "parametrized"
    if isinstance(module, Held):
        return "a subclass of a held layer"
    return None if can_hold(module) else "its class keeps account of subclasses or copies"


def _check_finite(found: Sequence[tuple[str, nn.Module]]) -> None:
    broken = [
        name or "the model"
        for name, module in found
        for buffer in (module._buffers["running_mean"], module._buffers["running_var"])
        if buffer is not None and not buffer.is_meta and not bool(torch.isfinite(buffer).all())
    ]
    if broken:
        names = list(dict.fromkeys(broken))
        raise StatisticsError(
            explain(
                "statistics to be held still are finite",
                f"NaN or infinity in {', '.join(names[:5])}"
                + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
                "compute them anew with normkit.recalibrate(model, batches), then freeze",
            )
        )


def _doubt(module: nn.Module) -> str:
    """What a reader of the table should know of the statistics that are now held."""
    mean, var = module._buffers["running_mean"], module._buffers["running_var"]
    if mean is None or var is None or mean.is_meta:
        return ""
    new = torch.atleast_2d((mean == 0) & (var == 1)).all(-1)  # bank by bank
    if bool(new.any()):
        banks = ", ".join(str(k) for k, one in enumerate(new.tolist()) if one)
        which = "" if bool(new.all()) else f"bank {banks} "
        return f" ({which}still mean 0 and variance 1, as made)"
    if getattr(module, "momentum", None) == 0:
        return " (momentum 0: they did not move in training)"
    return ""


def _affine(module: nn.Module, freezing: bool) -> dict[str, Parameter]:
    """γ and β, where ``requires_grad`` is to change."""
    named = {"γ": module._parameters.get("weight"), "β": module._parameters.get("bias")}
    return {
        k: p
        for k, p in named.items()
        if p is not None and p.requires_grad is freezing and p.is_floating_point()
    }


def _holding(name: str, module: nn.Module, freezing: bool) -> Step:
    def undo(back: Callable[[nn.Module], None], held: bool) -> Left | None:
        if is_held(module) is not held:
            other = isinstance(module, Held) is held  # something was put over it
            return Left(name, type(module), "its class was changed again") if other else None
        back(module)
        return None

    if freezing:
        return Step(partial(hold, module), partial(undo, release, True))
    return Step(partial(release, module), partial(undo, hold, False))


def _learning(parameter: Parameter, freezing: bool) -> Step:
    def do() -> None:
        parameter.requires_grad_(not freezing)
        if freezing:
            parameter.grad = None

    def undo() -> None:
        parameter.requires_grad_(freezing)

    return Step(do, undo)
