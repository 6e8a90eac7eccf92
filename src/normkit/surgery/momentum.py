"""Correct the momentum of running statistics for gradient accumulation."""

from __future__ import annotations

import math
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from normkit.errors import OptionError, message
from normkit.handle import Changed, Handle, Skipped, Step, run, warn_skipped
from normkit.nn.freezing import FrozenMixin, base_class, is_constant
from normkit.nn.stats_spec import stats_spec, why_unknown
from normkit.statistics.check_arguments import check_model
from normkit.statistics.layers.train_overrides import KEPT, kept_in_evaluation
from normkit.surgery.modules import is_opaque, walk, why_opaque

__all__ = ["scale_momentum"]


def scale_momentum(model: nn.Module, micro_batches: int) -> Handle:
    r"""Correct the momentum of running statistics for gradient accumulation, in place.

    .. math::
        m' = 1 - (1 - m)^{1/k}

    A layer updates its running statistics in each forward pass. With gradients accumulated over
    k micro-batches that is k times per optimizer step, so :math:`(1-m)^k` of the former value
    remains where :math:`1-m` was intended. With :math:`m'` it is :math:`(1-m')^k = 1-m`.

    Exponential averages are scaled, and debiased ones, which weigh batches as exponential ones do
    (scale those before training: in the middle of the first batches they overweight the newest
    for a while). A cumulative average weighs all batches equally and is skipped, and so are
    statistics that are not updated, subclasses with their own ``forward``, and registered layers
    whose ``StatsSpec`` does not say that they have a momentum m as above: in other libraries it may
    be the share kept.

    Args:
        model: any module; all its layers with running statistics.
        micro_batches: forward passes per optimizer step, k.

    Returns:
        A handle: ``print`` shows which layers were scaled and which skipped, and why;
        ``.undo()`` restores each momentum.

    Raises:
        TypeMismatchError: ``model`` is no module, or is scripted.
        OptionError: ``micro_batches`` is not a positive integer.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.1))
    >>> scale_momentum(model, micro_batches=4)
    scale_momentum: 1 changed, 0 skipped
      1  nn.BatchNorm1d: momentum 0.1 → 0.026
    """
    check_model(model, "scale_momentum")
    if not isinstance(micro_batches, int) or isinstance(micro_batches, bool) or micro_batches < 1:
        raise OptionError(
            message(
                "micro_batches, the number of forward passes per optimizer step, to be an integer "
                "of at least 1",
                f"micro_batches={micro_batches!r}",
                "pass the number of batches over which gradients are accumulated",
            )
        )
    changed: list[Changed] = []
    skipped: list[Skipped] = []
    missed: list[Skipped] = []
    steps: list[Step] = []
    in_evaluation = kept_in_evaluation(model)
    for name, module in walk(model):
        unknown = why_opaque(module) if is_opaque(module) else why_unknown(module)
        if unknown is None and stats_spec(module) is None:
            continue
        cls, layer = base_class(type(module)), cast(Any, module)
        key = _attribute(layer)
        if unknown is not None and not is_constant(module):
            missed.append(Skipped(name, cls, unknown))
        why = unknown or (KEPT if id(layer) in in_evaluation else _why_skipped(layer, key))
        if why is not None:
            skipped.append(Skipped(name, cls, why))
        elif key is not None and micro_batches > 1:
            before = float(getattr(layer, key))
            # 1 − (1 − m)^(1/k) without cancellation for small m.
            after = 1.0 if before == 1 else -math.expm1(math.log1p(-before) / micro_batches)
            steps.append(_momentum_change(name, layer, key, after))
            note = f"{key} {before:.3g} → {after:.3g}"
            changed.append(Changed(name, cls, cls, note=note))
    run(steps)
    if not changed:
        warn_skipped("scale_momentum changed nothing, and", missed)
    return Handle("scale_momentum", changed, skipped, steps)


def _attribute(layer: nn.Module) -> str | None:
    """Return the name of the attribute that is known to hold the share each batch replaces."""
    spec = stats_spec(layer)
    registered = None if spec is None else spec.momentum
    return "momentum" if registered is None and isinstance(layer, _NormBase) else registered


def _why_skipped(layer: Any, key: str | None) -> str | None:
    if key is None and hasattr(layer, "momentum"):
        return "what its momentum means is unknown; StatsSpec(momentum=...) makes it known"
    if key is None or not hasattr(layer, key):
        return "has no momentum"
    momentum = getattr(layer, key)
    if momentum is None or getattr(layer, "average", None) == "cumulative":
        return "cumulative: weighs all batches equally"
    if isinstance(layer, FrozenMixin) or momentum == 0:
        return "its statistics are not updated"
    if not isinstance(momentum, (int, float)) or not 0 < momentum <= 1:
        return f"{key} {momentum!r} is not between 0 and 1"
    return None


def _momentum_change(name: str, layer: nn.Module, key: str, after: float) -> Step:
    before = getattr(layer, key)

    def do() -> None:
        setattr(layer, key, after)

    def undo() -> Skipped | None:
        if getattr(layer, key, None) not in (after, before):
            return Skipped(name, base_class(type(layer)), f"its {key} was changed again")
        setattr(layer, key, before)
        return None

    return Step(do, undo)
