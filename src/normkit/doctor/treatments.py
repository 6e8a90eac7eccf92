"""Ways to mend a finding: what :meth:`normkit.doctor.Finding.mend` does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normkit.doctor.finding import Treatment
from normkit.doctor.norms import Norm, find_norms
from normkit.handle import Changed, Handle, Step, run
from normkit.nn.stats_spec import stats_spec
from normkit.statistics.batches.run_model import Forward
from normkit.statistics.recalibrate import recalibrate
from normkit.statistics.results.recalibration import Recalibration
from normkit.surgery.freeze import freeze

__all__ = [
    "MOMENTUM",
    "RECALIBRATE",
    "RECALIBRATE_ON_EVALUATION",
    "freezing",
    "movable",
    "recalibration",
    "rescaling",
    "set_attributes",
    "together",
    "widen",
]

RECALIBRATE, RECALIBRATE_ON_EVALUATION = "recalibrate", "recalibrate on evaluation"
MOMENTUM = 0.1
"""PyTorch's default."""


@contextlib.contextmanager
def movable(model: nn.Module) -> Iterator[None]:
    """Let layers with a momentum of 0 be measured, which otherwise count as frozen."""
    still = [
        one.layer
        for one in find_norms(model)
        if one.momentum == 0 and not one.frozen and stats_spec(one.layer) is not None
    ]
    attributes = [(layer, _momentum_attribute(layer)) for layer in still]
    before = [(layer, name, getattr(layer, name)) for layer, name in attributes]
    try:
        for layer, name in attributes:
            setattr(layer, name, MOMENTUM)
        yield
    finally:
        for layer, name, value in before:
            setattr(layer, name, value)


def _momentum_attribute(layer: nn.Module) -> str:
    spec = stats_spec(layer)
    return spec.momentum if spec is not None and spec.momentum else "momentum"


def recalibration(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    samples: int | None,
    forward: Forward | None,
    key: str = RECALIBRATE,
) -> Treatment:
    """Replace the running statistics by those of ``batches``."""

    def apply() -> Recalibration:
        with movable(model):
            return recalibrate(
                model, batches, samples=samples, forward=forward, process_group=False,
                progress=False,
            )  # fmt: skip

    return Treatment(key, apply, trial=True)


def set_attributes(
    verb: str, norms: Sequence[Norm], values: Mapping[str, Any], *, trial: bool = False
) -> Treatment:
    """Set attributes of layers, such as their momentum, to other values.

    Args:
        verb: what the handle calls it.
        values: by attribute; a function is called with the layer.
        trial: whether the score shows its effect at once.
    """

    def apply() -> Handle:
        steps, changed = [], []
        for one in norms:
            for name, value in values.items():
                before = getattr(one.layer, name)
                after = value(one.layer) if callable(value) else value
                steps.append(
                    Step(_setter(one.layer, name, after), _setter(one.layer, name, before))
                )
                note = f"{name} {_text(before)} → {_text(after)}"
                cls = type(one.layer)
                changed.append(Changed(one.name, cls, cls, note=note))
        run(steps)
        return Handle(verb, changed, [], steps)

    names = ",".join(one.name for one in norms)
    return Treatment(f"{verb} {names}", apply, trial)


def freezing(norms: Sequence[Norm]) -> Treatment:
    """Freeze statistics, γ and β of these layers, as :func:`normkit.freeze` does."""

    def apply() -> Handle:
        together = nn.Module()
        together._modules.update({one.name: one.layer for one in norms})  # names have dots
        return freeze(together)

    return Treatment("freeze " + ",".join(one.name for one in norms), apply)


def widen(norms: Sequence[Norm]) -> Treatment:
    """Keep running statistics in float32, and γ and β too where PyTorch asks for one type."""

    def apply() -> Handle:
        steps, changed = [], []
        for one in norms:
            cls, stats = type(one.layer), one.stats or ()
            tensors = [t for t in one.layer.buffers() if any(t is s for s in stats)]
            if not cls.__module__.startswith("normkit."):
                tensors += one.layer.parameters()
            for tensor in tensors:
                wide, former = (
                    partial(_cast, tensor, torch.float32),
                    partial(_cast, tensor, tensor.dtype),
                )
                steps.append(Step(wide, former))
            what = f"{_text(tensors[0])} → float32" if tensors else ""
            changed.append(Changed(one.name, cls, cls, note=what))
        run(steps)
        return Handle("float32", changed, [], steps)

    return Treatment("float32 " + ",".join(one.name for one in norms), apply)


def _cast(tensor: Tensor, dtype: torch.dtype) -> None:
    """Change the type of a parameter or buffer, which stays the same object."""
    gradient, tensor.grad = tensor.grad, None
    tensor.data = tensor.data.to(dtype)
    tensor.grad = None if gradient is None else gradient.to(dtype)


def rescaling(model: nn.Module, scale: Tensor, shift: Tensor) -> Treatment:
    """Multiply the model's input by ``scale`` and add ``shift``, (C,) each; only to try it."""

    def rescale(_: nn.Module, args: Any, kwargs: Any) -> Any:
        values = [*args, *kwargs.values()]
        first = next((x for x in values if isinstance(x, Tensor) and x.is_floating_point()), None)
        if first is None or first.dim() < 2 or first.shape[1] != len(scale):
            return None
        shape = (1, -1, *[1] * (first.dim() - 2))
        changed = first * scale.to(first).view(shape) + shift.to(first).view(shape)
        args = tuple(changed if x is first else x for x in args)
        return args, {key: changed if x is first else x for key, x in kwargs.items()}

    def apply() -> Handle:
        hook = model.register_forward_pre_hook(rescale, with_kwargs=True)
        cls = type(model)
        changed = [Changed("", cls, cls, note="inputs rescaled")]
        return Handle("rescaling", changed, [], [Step(lambda: None, lambda: hook.remove())])

    return Treatment("rescale the evaluation inputs", apply, trial=True)


class _Together:
    """Handles of several acts, undone in reverse."""

    def __init__(self, handles: Sequence[Any]) -> None:
        self.handles = tuple(handles)

    def undo(self) -> None:
        """Undo all of them, the last one first."""
        for handle in reversed(self.handles):
            handle.undo()

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.handles))


def together(first: Treatment, then: Treatment | None) -> Treatment:
    """Do one after the other; what shows in the score at once is the second's.

    >>> act = set_attributes("momentum", find_norms(nn.BatchNorm1d(2)), {"momentum": 0.2})
    >>> together(act, None) is act
    True
    """
    if then is None:
        return first

    def apply() -> _Together:
        done = first.apply()
        try:
            return _Together((done, then.apply()))
        except BaseException:
            done.undo()
            raise

    return Treatment(then.key, apply, then.trial, (first, then))


def _setter(layer: nn.Module, name: str, value: Any) -> Callable[[], None]:
    def set_it() -> None:
        setattr(layer, name, value)

    return set_it


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor"
    return f"{value:g}" if isinstance(value, float) else str(value)
