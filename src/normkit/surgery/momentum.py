"""Momentum for those who accumulate gradients over several batches."""

from __future__ import annotations

import math

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from normkit.errors import OptionError, explain
from normkit.handle import Changed, Handle, Left, Step, run
from normkit.nn.held import Held, plain, remembers
from normkit.surgery.places import check_model, walk

__all__ = ["scale_momentum"]


def scale_momentum(model: nn.Module, micro_batches: int) -> Handle:
    r"""Make running statistics forget as much per optimizer step as without accumulation; in place.

    .. math::
        m' = 1 - (1 - m)^{1/k}

    A layer moves its averages in each forward pass. With gradients accumulated over k
    micro-batches that is k times a step, and after one step :math:`(1-m)^k` is left of what was
    remembered, where :math:`1-m` was meant. With :math:`m'` it is :math:`(1-m')^k = 1-m`.

    An exponential average is scaled, and a debiased one, whose batches weigh what they weigh in
    an exponential one (scale it before training: in the middle of the first batches it trusts
    the newest ones more for a while). A cumulative one weighs all batches the same, however many
    make a step: it is left.

    Args:
        model: any module; all its layers that remember statistics.
        micro_batches: forward passes per optimizer step, k.

    Returns:
        A handle: ``print`` it for what was scaled and what was left and why; ``.undo()`` gives
        each layer its momentum back.

    Raises:
        TypeMismatchError: ``model`` is no module, or scripted.
        OptionError: ``micro_batches`` is not a positive integer.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.1))
    >>> scale_momentum(model, micro_batches=4)
    scale_momentum: 1 changed, 0 left
      1  nn.BatchNorm1d: momentum 0.1 → 0.026
    """
    check_model(model, "scale_momentum changes the layers")
    if not isinstance(micro_batches, int) or isinstance(micro_batches, bool) or micro_batches < 1:
        raise OptionError(
            explain(
                "micro_batches is how many forward passes make an optimizer step, an integer of "
                "at least 1",
                f"micro_batches={micro_batches!r}",
                "give the number of batches that gradients are accumulated over",
            )
        )
    changed: list[Changed] = []
    left: list[Left] = []
    steps: list[Step] = []
    for name, module in walk(model):
        if not isinstance(module, _NormBase) or not remembers(module):
            continue
        cls = plain(type(module))
        why = _why_left(module)
        if why is not None:
            left.append(Left(name, cls, why))
        elif micro_batches > 1:
            before = float(module.momentum or 0.0)
            # 1 − (1 − m)^(1/k) without cancellation for small m.
            after = 1.0 if before == 1 else -math.expm1(math.log1p(-before) / micro_batches)
            steps.append(_setting(name, module, after))
            note = f"momentum {before:.3g} → {after:.3g}"
            changed.append(Changed(name, cls, cls, note=note))
    run(steps)
    return Handle("scale_momentum", changed, left, steps)


def _why_left(module: _NormBase) -> str | None:
    momentum = module.momentum
    if momentum is None or getattr(module, "average", None) == "cumulative":
        return "cumulative: all batches weigh the same"
    if isinstance(module, Held) or momentum == 0:
        return "its statistics do not move"
    if not isinstance(momentum, (int, float)) or not 0 < momentum <= 1:
        return f"momentum {momentum!r} is no share from 0 to 1"
    return None


def _setting(name: str, module: _NormBase, after: float) -> Step:
    before = module.momentum

    def do() -> None:
        module.momentum = after

    def undo() -> Left | None:
        if module.momentum not in (after, before):
            return Left(name, plain(type(module)), "its momentum was changed again")
        module.momentum = before
        return None

    return Step(do, undo)
